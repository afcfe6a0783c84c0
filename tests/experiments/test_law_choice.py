"""The choice of a law: what is fitted is never scored, and missing data is named."""

import dataclasses

import numpy as np
import pytest

from experiments import law_choice
from scaling_laws import curves
from scaling_laws._predict import predict


def runs():
    """Three noiseless runs of one law; the last branches off the second."""
    law = law_choice.RELAXATION.law
    params = {"L0": 2.9, "A": 0.6, "alpha": 0.5, "B": 500.0, "C": 0.02}
    made = {
        "cosine": curves.cosine(16000, peak=3e-4, end=3e-5, warmup=500),
        "constant": curves.constant(16000, peak=3e-4, warmup=500),
        "two": curves.two_stage(16000, switch=8000, peak=3e-4, end=9e-5, warmup=500),
    }
    steps = np.arange(1000, 16000, 250)
    return [
        curves.Curve(name=name, steps=steps, losses=losses, learning_rates=rates)
        for name, rates in made.items()
        for losses in [predict(law, params, rates, steps)]
    ]


def test_no_point_is_both_fitted_and_scored():
    data = runs()
    found = law_choice.folds(data)
    assert len(found) == len(data) + len(law_choice.CUTS)
    for fitted, scored in found.values():
        assert sum(mask.sum() for mask in fitted) > 0
        assert sum(mask.sum() for mask in scored) > 0
        assert not any(np.any(a & b) for a, b in zip(fitted, scored))
    # The branch repeats the constant run up to its switch: step 8000 has seen the new rate.
    _, scored = found["without two"]
    assert data[2].steps[scored[2]].min() == 8000


def test_the_law_that_made_the_runs_has_no_error():
    right = law_choice.Candidate("right", (law_choice.RELAXATION,))
    data = runs()
    errors = law_choice.score(right, data, law_choice.folds(data), {})
    assert max(e["WorstE"] for e in errors.values()) < 1e-6


def test_the_points_that_are_scored_cannot_touch_the_fit():
    data = runs()
    fitted, scored = law_choice.folds(data)["after 10000"]
    spoiled = [
        dataclasses.replace(run, losses=np.where(mask, 1.1 * run.losses, run.losses))
        for run, mask in zip(data, scored)
    ]
    found = law_choice.predict(law_choice.RELAXATION, "huber", spoiled, fitted, data)
    for run, prediction in zip(data, found):
        np.testing.assert_allclose(prediction, np.log(run.losses), atol=1e-6)


def test_missing_curves_end_with_a_line(tmp_path, capsys):
    assert law_choice.main(["--data", str(tmp_path)]) == 2
    assert "25M" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["huber", "lsq", *law_choice.OBJECTIVES])
def test_weights_have_one_entry_a_point(objective):
    data = runs()
    weights = law_choice.point_weights(objective, data)
    assert [len(w) for w in weights] == [len(run.steps) for run in data]
    if objective == "shared once":
        assert sum((w == 0).sum() for w in weights) == (data[2].steps < 8000).sum()
