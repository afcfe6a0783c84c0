"""Sweeps: which trials there are, what becomes of each, and going on after a stop."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from experiments import sweep

ROOT = Path(__file__).parent.parent.parent
CONFIG = "experiments/configs/saf_digits.py:smoke"


def test_the_sequence_is_scipys_halton():
    ranges = {"a": "linear:0:1", "b": "linear:0:1", "c": "linear:0:1"}
    ours = [[float(v) for v in point.values()] for point in sweep.halton(ranges, 20)]
    theirs = scipy.stats.qmc.Halton(d=3, scramble=False).random(21)[1:]  # without the origin
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # six digits are written


def test_ranges_are_logarithmic_or_whole_numbers():
    points = sweep.halton({"rate": "log:1e-4:1", "width": "int:3:5"}, 300)
    rates = np.log10([float(point["rate"]) for point in points])
    assert abs(rates.mean() + 2) < 0.05
    assert -4 <= rates.min() < -3.9
    assert -0.1 < rates.max() <= 0
    widths = [point["width"] for point in points]
    assert [widths.count(w) for w in "345"] == [100, 100, 100]


def test_grids_are_crossed_with_each_other_and_with_the_points():
    trials = sweep.make_trials({"a": "1,2", "b": "x,y"}, {}, 0)
    assert [tuple(t.values()) for t in trials] == [
        ("1", "x"), ("1", "y"), ("2", "x"), ("2", "y"),
    ]  # fmt: skip
    crossed = sweep.make_trials({"seed": "0,1,2"}, {"rate": "linear:0:1"}, 4)
    assert len(crossed) == 12
    assert [t["rate"] for t in crossed[:4]] == ["0.5", "0.5", "0.5", "0.25"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to vary"),
        (["--grid=seed"], "expected key=value"),
        (["--grid=seed=1", "--grid=seed=2"], "each key once"),
        (["--halton=width=int:1:4"], "--trials"),
        (["--halton=width=log:0:4", "--trials=2"], "LOW > 0"),
        (["--halton=width=int:4:4", "--trials=2"], "LOW < HIGH"),
        (["--halton=width=cubic:1:4", "--trials=2"], "expected linear"),
        (["--grid=seed=1", "--halton=seed=int:0:4", "--trials=2"], "keep one"),
        (["--grid=learning_rat=1"], "learning_rate"),
        (["--grid=seed=1", "--jobs=0"], "--jobs"),
    ],
)
def test_bad_input_is_one_line_and_runs_nothing(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "sweep"
    assert sweep.main([f"--config={CONFIG}", f"--workdir={workdir}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()


FAKE = """
import json, os, sys, time
from pathlib import Path
options = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = Path(options["workdir"])
folder.mkdir(exist_ok=True, parents=True)
seed = int(options["config.seed"])
with Path(os.environ["FAKE_LOG"]).open("a") as log:
    log.write(f"{seed}\\n")
if seed == 2 and not Path(os.environ["FAKE_LOG"] + ".fixed").exists():
    print("error: disk full")
    sys.exit(4)
if seed == 9:
    time.sleep(60)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "test/loss": 5.0 - seed}) + "\\n")
sys.exit(3 if seed == 1 else 0)
"""


@pytest.fixture
def fake_train(tmp_path, monkeypatch):
    """In place of Python with experiments.train: a script that ends as its seed says."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    log = tmp_path / "ran.txt"
    log.touch()
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setattr(sweep.sys, "executable", str(python))
    return log


def test_statuses_say_how_each_trial_ended_and_a_second_start_does_the_rest(
    tmp_path, fake_train, capsys
):
    arguments = [
        f"--config={CONFIG}", f"--workdir={tmp_path / 's'}", "--grid=seed=0,1,2,3", "--jobs=2",
    ]  # fmt: skip
    assert sweep.main(arguments) == 1
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert [t["status"] for t in trials] == ["done", "diverged", "failed", "done"]
    assert trials[2]["message"] == "exit code 4: error: disk full"
    table = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in table[:2]] == ["3", "0"]  # losses 2 and 5
    Path(str(fake_train) + ".fixed").touch()
    assert sweep.main(arguments) == 0
    assert sorted(fake_train.read_text().split()) == ["0", "1", "2", "2", "3"]
    assert sweep.main(arguments) == 0  # nothing is left to do
    assert len(fake_train.read_text().split()) == 5


def test_another_sweep_in_the_same_folder_is_refused(tmp_path, fake_train, capsys):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 's'}"]
    assert sweep.main([*arguments, "--grid=seed=0"]) == 0
    before = (tmp_path / "s" / "trials.json").read_bytes()
    assert sweep.main([*arguments, "--grid=seed=0,3"]) == 2
    assert sweep.main([*arguments, "--grid=seed=0", "--config.width=9"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert (tmp_path / "s" / "trials.json").read_bytes() == before
    (tmp_path / "s" / "trials.json").write_text("{")
    assert sweep.main([*arguments, "--grid=seed=0"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_sigterm_ends_the_trials_and_leaves_them_waiting(tmp_path, fake_train):
    python = sweep.sys.executable
    code = (
        "import sys\nfrom experiments import sweep\n"
        "real, sys.executable = sys.executable, sys.argv[1]\n"
        "sys.exit(sweep.main(sys.argv[2:]))\n"
    )
    process = subprocess.Popen(
        [
            *(REAL_PYTHON, "-c", code, python, f"--config={CONFIG}"),
            *(f"--workdir={tmp_path / 's'}", "--grid=seed=9,0"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while "9" not in fake_train.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert [t["status"] for t in trials] == ["waiting", "waiting"]
    assert fake_train.read_text().split() == ["9"]


REAL_PYTHON = sys.executable


@pytest.mark.slow
def test_a_real_sweep_trains_and_notices_divergence(tmp_path, capsys):
    arguments = [
        f"--config={CONFIG}", f"--workdir={tmp_path / 's'}", "--grid=learning_rate=0.1,1e30",
        "--config.num_epochs=2", "--metric=test/accuracy", "--goal=max",
    ]  # fmt: skip
    assert sweep.main(arguments) == 0
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert [t["status"] for t in trials] == ["done", "diverged"]
    assert "learning_rate=0.1" in capsys.readouterr().out.splitlines()[1]
