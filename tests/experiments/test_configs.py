"""Every config loads, is locked against misspelt keys, and runs in smoke mode."""

import importlib.util
import json
from pathlib import Path

import pytest

from experiments.train import main

CONFIGS = sorted((Path(__file__).parent.parent.parent / "experiments/configs").glob("[!_]*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_how_it_is_run(path):
    module = load(path)
    assert f"--config=experiments/configs/{path.name}" in module.__doc__
    assert "--workdir=" in module.__doc__
    with pytest.raises(ValueError, match="mode"):
        module.get_config("no_such_mode")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs_in_smoke_mode(path, tmp_path, capsys):
    workdir = tmp_path / "run"
    status = main([f"--config={path}:smoke", f"--workdir={workdir}", "--quiet"])
    assert status == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= 1
    assert "wall" not in (workdir / "metrics.jsonl").read_text()
    assert json.loads((workdir / "config.json").read_text())["study"]
