"""The command line, in process: JSON out, refusals on stderr."""

import json

import numpy as np
import pytest

from scaling_laws import curves, learning_rate_areas
from scaling_laws._cli import main


@pytest.fixture
def table(tmp_path):
    size = np.tile(np.geomspace(1e8, 1e10, 6), 5)
    tokens = np.repeat(np.geomspace(1e9, 1e12, 5), 6)
    loss = 1.7 + 400 * size**-0.34 + 1000 * tokens**-0.35
    rows = ["params,tokens,loss"] + [f"{n},{d},{y}" for n, d, y in zip(size, tokens, loss)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def logs(tmp_path):
    paths = []
    plans = {
        "cosine": curves.cosine(2000, peak=1e-3, end=1e-4, warmup=50),
        "two": curves.two_stage(2000, peak=1e-3, switch=900, end=3e-4, warmup=50),
    }
    for name, rates in plans.items():
        s1, s2 = learning_rate_areas(np.maximum(rates, np.where(np.arange(2000) < 50, 1e-3, 0)),
                                     decay=0.99)  # fmt: skip
        s1 = np.cumsum(rates)
        steps = np.arange(100, 2000, 40)
        loss = 2.6 + 0.6 * s1[steps] ** -0.4 - 2.0 * s2[steps]
        path = tmp_path / f"{name}.csv"
        rows = ["step,lr,loss"] + [f"{s},{rates[s]},{y}" for s, y in zip(steps, loss)]
        path.write_text("\n".join(rows) + "\n")
        paths.append(str(path))
    return paths


SCHEDULES = [
    "--schedule=cosine:peak=1e-3,end=1e-4,warmup=50,steps=2000",
    "--schedule=two_stage:peak=1e-3,switch=900,end=3e-4,warmup=50,steps=2000",
]


def test_fit_writes_what_is_needed_to_do_it_again(table, tmp_path):
    out, plot = tmp_path / "fit.json", tmp_path / "fit.png"
    code = main(["fit", str(table), "--law=chinchilla", f"--out={out}", f"--plot={plot}",
                 "--bootstraps=20", "--seed=3"])  # fmt: skip
    assert code == 0
    record = json.loads(out.read_text())
    assert record["params"]["alpha"] == pytest.approx(0.34, rel=1e-5)
    assert len(record["data_sha256"]) == 64
    assert record["seed"] == 3
    assert set(record["versions"]) == {"jax", "numpy", "scipy"}
    assert record["diagnostics"]["hit_rate"] > 0.5
    assert record["bootstrap"]["samples"] == 20
    assert plot.stat().st_size > 5000


def test_frontier_prints_json(table, capsys):
    assert main(["frontier", str(table), "--flops", "1e20", "1e22"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["frontier"]["exponent"] == pytest.approx(0.35 / 0.69, rel=1e-4)


@pytest.mark.slow
def test_schedule_and_watch_share_the_logs(logs, capsys):
    code = main(["schedule", *logs, *SCHEDULES, "--steps=1000", "--floor=1e-4", "--family=wsd"])
    captured = capsys.readouterr()
    assert code == 0
    record = json.loads(captured.out)
    assert record["fit"]["params"]["lambda"] == pytest.approx(0.99, abs=1e-3)
    assert len(record["schedule"]["learning_rates"]) == 1000
    assert "reading" in captured.err
    code = main(["watch", *logs, *SCHEDULES])
    record = json.loads(capsys.readouterr().out)
    assert code == 0
    assert record["status"] == "predicted"
    assert record["low"] < record["final_loss"] < record["high"]


@pytest.mark.slow
def test_predict_and_compare(logs, capsys):
    assert main(["predict", logs[1], *SCHEDULES[1:], SCHEDULES[0], "--held-out", logs[0]]) == 0
    record = json.loads(capsys.readouterr().out)
    run = record["predictions"]["cosine"]
    np.testing.assert_allclose(run["predicted"], run["measured"], rtol=5e-3)
    code = main(["compare", *logs, *SCHEDULES, "--laws=annealing,power_relaxation"])
    assert code == 0
    rows = json.loads(capsys.readouterr().out)["laws"]
    assert rows[0]["law"] == "LRAnnealing"


def test_refusals_are_messages_and_code_2(table, capsys):
    assert main(["fit", str(table), "--law=quadratic"]) == 2
    assert "one of chinchilla" in capsys.readouterr().err
    assert main(["fit", "absent.csv"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["fit", str(table), "--schedule=square:peak=1"]) == 2
    assert "shape must be one of" in capsys.readouterr().err


def test_wrong_input_of_a_user_is_one_line(table, tmp_path, capsys):
    binary, folder = tmp_path / "binary.csv", tmp_path / "folder"
    binary.write_bytes(bytes(range(256)))
    folder.mkdir()
    log = tmp_path / "log.csv"
    log.write_text("step,lr,loss\n" + "".join(f"{s},1e-3,{4 / s}\n" for s in range(1, 30)))
    wrong = {
        "is not a text file": ["fit", str(binary)],
        "holds no TensorBoard event file": ["fit", str(folder)],
        "cosine takes peak, end, warmup and steps, and needs peak; got peek": [
            "schedule", str(log), "--steps=100", "--schedule=cosine:peek=1"],
        "needs peak; got none": ["schedule", str(log), "--steps=9", "--schedule=cosine"],
        "less than one parameter": [
            "frontier", str(table), "--flops", "1e21", "--inference-tokens=1e30"],
        "no learning rate falls": ["fit", str(log)],
        "File exists": ["fit", str(table), "--law=chinchilla", f"--out={table}/fit.json"],
    }  # fmt: skip
    for words, command in wrong.items():
        assert main(command) == 2, command
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1
        assert words in lines[0], lines
