"""Comparison, schedules, forecasts and Hoffmann's methods, where the answer is known."""

import dataclasses

import numpy as np
import pytest

import scaling_laws
from scaling_laws import _curve_interval, curves, laws

TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "C": 1.0, "lambda": 0.995}


def run(rates, name, steps=None, noise=0.0, seed=0, total=None):
    total = len(rates) if total is None else total
    steps = np.arange(200, total, 50) if steps is None else steps
    s1, s2 = scaling_laws.learning_rate_areas(rates, decay=TRUTH["lambda"])
    loss = TRUTH["L0"] + TRUTH["A"] * s1 ** -TRUTH["alpha"] - TRUTH["C"] * s2
    shake = noise * np.random.default_rng(seed).standard_normal(len(steps))
    return curves.Curve(steps, loss[steps] * np.exp(shake), rates, name=name)


@pytest.fixture(scope="module")
def runs():
    return [
        run(curves.cosine(3000, peak=1e-3, end=1e-4), "cosine", noise=2e-4, seed=1),
        run(curves.two_stage(3000, peak=1e-3, switch=1500, end=3e-4), "two", noise=2e-4, seed=2),
        run(curves.wsd(3000, peak=1e-3, decay_start=2400, end=1e-4), "wsd", noise=2e-4, seed=3),
    ]


@pytest.fixture(scope="module")
def fitted(runs):
    return scaling_laws.fit(laws.LRAnnealing(decay=0.995), runs)


def test_the_best_schedule_of_the_annealing_law_is_its_closed_form(fitted):
    p, steps = fitted.params, 6000
    found = scaling_laws.optimize_schedule(fitted, steps=steps, peak=1e-3)
    # The peak, then zero for the last n steps: C lambda^(n-1) = alpha A S1^(-alpha-1).
    n = np.arange(1, steps)
    area = 1e-3 * (steps - n)
    gain = p["C"] * p["lambda"] ** (n - 1.0)
    cost = p["alpha"] * p["A"] * area ** (-p["alpha"] - 1)
    wanted = n[np.argmin(np.abs(np.log(gain / cost)))]
    zero = int(np.sum(found.learning_rates < 5e-4))
    assert zero == pytest.approx(wanted, rel=0.02)
    # Where the two rates of return cross, a step or two may end between the bounds.
    between = (found.learning_rates > 1e-8) & (found.learning_rates < 1e-3 - 1e-8)
    assert between.sum() <= 2
    assert found.final_loss <= min(found.families.values())
    assert any("below anything fitted" in warning for warning in found.warnings)
    assert any("cliff" in warning for warning in found.warnings)
    s1, s2 = scaling_laws.learning_rate_areas(found.learning_rates, decay=p["lambda"])
    assert found.final_loss == pytest.approx(
        p["L0"] + p["A"] * s1[-1] ** -p["alpha"] - p["C"] * s2[-1], rel=1e-10
    )


def test_constraints_of_the_schedule_hold(fitted):
    found = scaling_laws.optimize_schedule(
        fitted, steps=1000, peak=1e-3, floor=1e-4, warmup_steps=50, max_slope=2e-6
    )
    rates = found.learning_rates
    assert len(rates) == 1000
    np.testing.assert_allclose(np.diff(rates[:50]), 2e-5)
    after = rates[50:]
    assert after.min() >= 1e-4 * (1 - 1e-9)
    assert after.max() <= 1e-3 * (1 + 1e-9)
    falls = -np.diff(after)
    assert falls.min() >= -1e-12
    assert falls.max() <= 2e-6 * 1.001
    assert found.final_loss <= found.families["cosine"]
    only = scaling_laws.optimize_schedule(fitted, steps=1000, peak=1e-3, family="wsd")
    assert set(only.families) == {"wsd"}
    with pytest.raises(ValueError, match="floor <= peak"):
        scaling_laws.optimize_schedule(fitted, steps=100, peak=1e-3, floor=1.0)


def test_curves_in_another_order_twice_or_in_other_units_give_the_same_fit(runs, fitted):
    law, p = laws.LRAnnealing(decay=0.995), fitted.params
    for same in (runs[::-1], [runs[1], *runs, runs[0], runs[2]]):
        result = scaling_laws.fit(law, same)
        for symbol, value in p.items():
            assert result.params[symbol] == pytest.approx(value, rel=1e-6), symbol
    bits = [
        dataclasses.replace(c, losses=c.losses / np.log(2), learning_rates=1e3 * c.learning_rates)
        for c in runs
    ]
    q = scaling_laws.fit(law, bits).params
    assert q["L0"] * np.log(2) == pytest.approx(p["L0"], rel=1e-6)
    assert q["A"] * np.log(2) == pytest.approx(p["A"] * 1e3 ** p["alpha"], rel=1e-6)
    assert q["C"] * np.log(2) == pytest.approx(p["C"] / 1e3, rel=1e-6)
    assert q["alpha"] == pytest.approx(p["alpha"], rel=1e-6)


@pytest.mark.slow
def test_weights_of_points_follow_the_curves_as_they_were_given(runs):
    """Weight 0 for the second half of the first curve is the same as leaving it out."""
    law = laws.LRAnnealing(decay=0.995)
    kept = [np.ones(len(c.steps)) for c in runs]
    kept[0][runs[0].steps > 1500] = 0.0
    masked = scaling_laws.fit(law, runs, weights=np.concatenate(kept))
    cut = scaling_laws.fit(law, [runs[0].up_to(1500), *runs[1:]])
    for symbol, value in cut.params.items():
        assert masked.params[symbol] == pytest.approx(value, rel=1e-6), symbol


def test_shared_prefixes_are_no_test(runs):
    branch = dataclasses.replace(
        runs[2], losses=np.where(runs[2].steps <= 2000, runs[2].losses, 2.9), name="branch"
    )
    assert scaling_laws.last_shared_step(branch, runs) == 2000
    rest = scaling_laws.unshared([branch, runs[0]], runs)
    assert [c.name for c in rest] == ["branch"]
    assert rest[0].steps[0] == 2050


@pytest.mark.slow
def test_compare_prefers_the_law_that_made_the_data(runs):
    unseen = [
        run(curves.wsd(3000, peak=1e-3, decay_start=2000, end=2e-4), "new", noise=2e-4, seed=9)
    ]
    rows = scaling_laws.compare([laws.LRAnnealing(), laws.FunctionalScaling()], runs, unseen)
    assert rows[0]["law"] == "LRAnnealing"
    assert rows[0]["held_out"]["PredE"] < 5e-4
    assert rows[0]["AIC"] < rows[1]["AIC"]
    assert rows[0]["BIC"] < rows[1]["BIC"]
    in_turn = scaling_laws.compare([laws.LRAnnealing(decay=0.995)], runs)
    assert set(in_turn[0]["by_run"]) == {"cosine", "two", "wsd"}


def test_watch_refuses_before_the_decay_and_predicts_with_earlier_runs(runs):
    plan = curves.wsd(4000, peak=1e-3, decay_start=3400, end=1e-4)
    whole = run(plan, "running", noise=2e-4, seed=5)
    now = whole.up_to(3300)
    alone = scaling_laws.watch(now, laws.LRAnnealing(decay=0.995))
    assert alone.status == "not identifiable yet"
    assert alone.final_loss is None
    assert "0% of its planned fall" in alone.reason
    helped = scaling_laws.watch(now, laws.LRAnnealing(decay=0.995), earlier=runs)
    s1, s2 = scaling_laws.learning_rate_areas(plan, decay=0.995)
    truth = 2.6 + 0.6 * s1[-1] ** -0.45 - s2[-1]
    assert helped.status == "predicted"
    assert helped.final_loss == pytest.approx(truth, rel=1e-3)
    assert helped.low < truth < helped.high


def test_intervals_for_curves_cover_new_runs(fitted):
    plan = curves.wsd(5000, peak=1e-3, decay_start=4000, end=2e-4)
    new = [run(plan, f"new{seed}", noise=2e-4, seed=seed) for seed in (11, 12, 13)]
    shares = scaling_laws.coverage(fitted, new)
    assert np.mean(list(shares.values())) >= 0.9
    band = scaling_laws.curve_interval(fitted, new[0])
    assert band.noise == pytest.approx(2e-4, rel=0.3)
    assert np.all(band.low < band.prediction)
    assert band.coverage is not None


def test_the_width_for_a_new_run_is_that_of_a_root_mean_square_about_zero():
    """e / rms of m others, all normal about 0, is Student's t with m degrees of freedom."""
    rng = np.random.default_rng(0)
    for runs_left_out in (2, 3, 8):
        errors = rng.standard_normal((200_000, runs_left_out + 1))
        scale = np.sqrt(np.mean(errors[:, 1:] ** 2, axis=1))
        inside = np.abs(errors[:, 0]) <= _curve_interval.quantile(0.95, runs_left_out) * scale
        assert np.mean(inside) == pytest.approx(0.95, abs=2e-3)


def test_schedule_fits_refuse_what_they_cannot_tell(runs):
    flat = [run(curves.constant(2000, peak=1e-3), "flat")]
    with pytest.raises(ValueError, match=r"no learning rate falls .* so C, lambda cannot"):
        scaling_laws.fit(laws.LRAnnealing(), flat)
    with pytest.raises(ValueError, match="step 10 follows 20 at row 1"):
        scaling_laws.fit(
            laws.LRAnnealing(), [curves.Curve(np.array([20, 10]), np.ones(2), np.ones(30))]
        )
    with pytest.raises(ValueError, match="the schedule has 5 steps"):
        scaling_laws.fit(laws.LRAnnealing(), [curves.Curve(np.arange(9), np.ones(9), np.ones(5))])
    zero = curves.cosine(100, peak=1e-3, warmup=10)
    with pytest.raises(ValueError, match="area is 0 at point 0"):
        scaling_laws.fit(laws.LRAnnealing(), [curves.Curve(np.arange(99), np.ones(99), zero)])
    with pytest.raises(ValueError, match="warmup must be one of"):
        laws.LRAnnealing(warmup="none")


@pytest.mark.slow
def test_spikes_and_missing_rows_hardly_move_the_fit(runs, fitted):
    rng = np.random.default_rng(0)
    dirty = []
    for curve in runs:
        keep = rng.random(len(curve.steps)) > 0.1
        losses = curve.losses.copy()
        losses[[10, 30]] *= 1.5
        dirty.append(curves.repair(curve.steps[keep], losses[keep], schedule=curve.learning_rates))
    result = scaling_laws.fit(laws.LRAnnealing(decay=0.995), dirty)
    for symbol, value in fitted.params.items():
        assert result.params[symbol] == pytest.approx(value, rel=0.01), symbol


def test_hoffmanns_three_methods_agree_where_they_should():
    """alpha = beta and centred grids: every method gives a = 1/2."""
    params = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    budgets = np.geomspace(1e18, 1e21, 7)
    size = np.concatenate([np.sqrt(c / 6) * np.geomspace(0.2, 5, 11) for c in budgets])
    flops = np.repeat(budgets, 11)
    loss = 1.7 + 400 * size**-0.3 + 400 * (flops / 6 / size) ** -0.3
    table = {"params": size, "flops": flops, "loss": loss}
    found = scaling_laws.hoffmann_methods(table)
    assert found["isoflop"]["exponent"] == pytest.approx(0.5, abs=1e-3)
    assert found["parametric"]["exponent"] == pytest.approx(0.5, abs=1e-6)
    sizes = np.geomspace(1e8, 1e10, 40)
    tokens = np.geomspace(1e8, 1e12, 200)
    n, d = (a.ravel() for a in np.meshgrid(sizes, tokens))
    runs = {"params": n, "flops": 6 * n * d, "loss": 1.7 + 400 * n**-0.3 + 400 * d**-0.3}
    result = scaling_laws.fit(laws.Chinchilla(), table)
    assert result.params["A"] == pytest.approx(params["A"], rel=1e-5)
    envelope = scaling_laws.hoffmann_methods(runs, result=result)["envelope"]
    assert envelope["exponent"] == pytest.approx(0.5, abs=0.02)


def test_the_best_encoder_share_is_the_closed_form():
    law, params = laws.EncoderDecoder(), {"E": 1.0, "A": 50.0, "pe": 0.2, "pd": 0.1}
    encoder, decoder = law.best_split(params, 3e8)
    assert (encoder, decoder) == (pytest.approx(2e8), pytest.approx(1e8))
    share = np.linspace(0.01, 0.99, 981)
    losses = law.predict(
        params, {"encoder_params": 3e8 * share, "decoder_params": 3e8 * (1 - share)}
    )
    assert share[int(np.argmin(np.asarray(losses)))] == pytest.approx(2 / 3, abs=2e-3)
