"""`make run`: the table, the picture and the record behind them."""

import json
from pathlib import Path

import pytest

from experiments.compare import main

CONFIG = Path(__file__).parent.parent.parent / "experiments/configs/saf_digits.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compare")
    arguments = [
        f"--config={CONFIG}:smoke", f"--workdir={workdir}", "--seeds=2", "--methods=sgd,sam",
        "--config.num_devices=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    return workdir, arguments


def test_every_method_is_measured_from_every_seed(finished):
    workdir, _ = finished
    record = json.loads((workdir / "comparison.json").read_text())
    assert list(record["runs"]) == ["sgd", "sam"]
    for runs in record["runs"].values():
        assert [run["seed"] for run in runs] == [0, 1]
        for run in runs:
            assert 0.1 < run["accuracy"] <= 1
            assert run["step_ms"] > 0
            assert abs(run["lambda_max_error"]) < abs(run["lambda_max"])
    assert record["runs"]["sgd"][0]["loss"] != record["runs"]["sam"][0]["loss"]
    assert (workdir / "comparison.png").stat().st_size > 10_000


def test_started_again_it_trains_nothing_anew_and_ends_with_the_same_numbers(finished, capsys):
    workdir, arguments = finished
    before = json.loads((workdir / "comparison.json").read_text())
    lines = len((workdir / "sgd-0" / "metrics.jsonl").read_text().splitlines())
    assert main(arguments) == 0
    after = json.loads((workdir / "comparison.json").read_text())
    assert after["runs"] == before["runs"]
    assert len((workdir / "sgd-0" / "metrics.jsonl").read_text().splitlines()) == lines
    shown = capsys.readouterr().out
    assert "largest Hessian eigenvalue" in shown
    assert "±" in shown


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seeds=1", "method must be one of"),
        ("--config.learning_rte=0.1", "learning_rate"),
        ("--config=no_such_file.py", "does not exist"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(tmp_path, capsys, argument, message):
    assert main([f"--workdir={tmp_path}", "--seeds=1", "--methods=sagd", argument]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
