"""Every figure in fast mode: it draws, and what it claims holds."""

import importlib
import json

import pytest

import experiments.figures.__main__ as command

NAMES = command.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_says_what_it_claims(name):
    module = importlib.import_module(f"experiments.figures.{name}")
    assert module.__doc__
    assert callable(module.compute)
    assert callable(module.draw)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_holds_in_fast_mode(name, tmp_path, capsys):
    status = command.main([name, "--fast", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
    stem = tmp_path / name.replace(".", "/")
    assert json.loads(stem.with_suffix(".json").read_text())["result"]["claims"]
    assert stem.with_suffix(".png").stat().st_size > 5000
