"""The choice of exponents: the law that made the runs wins, and runs that are missing are named."""

import json

import numpy as np
import pytest

from experiments import exponent_choice
from scaling_laws import curves, laws
from scaling_laws._predict import predict

TRUTH = laws.PowerRelaxation(exponent=0.25, rate_exponent=0.75)


def runs():
    """Four noiseless runs of one law."""
    params = {"L0": 2.9, "A": 0.6, "alpha": 0.5, "B": 500.0, "C": 0.1}
    plan = {"peak": 3e-4, "warmup": 200}
    made = {
        "constant": curves.constant(6000, **plan),
        "cosine": curves.cosine(6000, end=3e-5, **plan),
        "wsd": curves.wsd(6000, decay_start=4000, end=3e-5, **plan),
        "two_stage": curves.two_stage(6000, switch=3000, end=9e-5, **plan),
    }
    steps = np.arange(400, 6000, 140)
    return [
        curves.Curve(steps, predict(TRUTH, params, rates, steps), rates, name=name)
        for name, rates in made.items()
    ]


def test_the_law_that_made_the_runs_wins(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(exponent_choice, "load", lambda folder: runs())
    monkeypatch.setattr(
        exponent_choice,
        "rules",
        lambda: {
            name: exponent_choice.law_choice.Member(laws.MultiPower(warmup="area"), fixed)
            for name, fixed in (
                ("other", (("beta", 0.25), ("gamma", 0.0))),
                ("right", (("beta", 0.25), ("gamma", 0.75))),
            )
        },
    )
    assert exponent_choice.main(["RUNS", "--out", str(tmp_path / "choice.json")]) == 0
    right, wrong = json.loads((tmp_path / "choice.json").read_text())["table"]
    assert (right["name"], wrong["name"]) == ("right", "other")
    assert right["score"] < 1e-6 < 1e-4 < wrong["score"]
    assert [len(parts) for parts in right["errors"].values()] == [4]
    assert "right" in capsys.readouterr().out.splitlines()[0]


def test_no_point_is_both_fitted_and_scored():
    data = runs()
    for fitted, scored in exponent_choice.splits(data).values():
        assert [mask.all() for mask in fitted].count(True) == exponent_choice.FITTED
        assert sum(mask.any() for mask in scored) == 1
        assert not any(np.any(a & b) for a, b in zip(fitted, scored))


def test_a_folder_without_published_curves_is_named_before_any_fit(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(exponent_choice, "table", lambda folders: pytest.fail("it fitted first"))
    assert exponent_choice.main(["RUNS", f"--published={tmp_path}"]) == 2
    assert "25M" in capsys.readouterr().err


def test_the_grid_holds_the_default_of_the_law():
    law = laws.PowerRelaxation()
    default = (("beta", law.exponent), ("gamma", law.rate_exponent))
    assert default in [rule.fixed for rule in exponent_choice.rules().values()]
    assert len(exponent_choice.rules()) == 18 + len(exponent_choice.PEERS)


def test_missing_and_unfinished_runs_end_with_a_line(tmp_path, capsys):
    assert exponent_choice.main([str(tmp_path)]) == 2
    assert "experiments.text_law" in capsys.readouterr().err
    folder = tmp_path / "constant"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_steps": 20}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": 3.0}) + "\n")
    with pytest.raises(ValueError, match="ends at step 10 of 20"):
        exponent_choice.load(tmp_path)
