"""The published laws on real curves: the optima that several optimizers agree on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scaling_data import TEST, TRAIN, load

import scaling_laws
from scaling_laws import _data, _robust, laws

# Objectives of Huber 1e-3 at the optimum, lambda 0.999, by multi-start L-BFGS-B with exact sums.
ANNEALING = {
    ("25M", "area"): 2.019e-4, ("25M", "peak"): 3.873e-4,
    ("100M", "area"): 1.241e-4, ("100M", "peak"): 2.663e-4,
}  # fmt: skip
MULTI_POWER = {"25M": 1.3843e-4, "100M": 2.1331e-5}


@pytest.mark.parametrize(
    ("size", "warmup"),
    [
        ("25M", "area"),
        *(pytest.param(*k, marks=pytest.mark.slow) for k in list(ANNEALING)[1:]),
    ],
)
def test_the_annealing_law_reaches_its_optimum(size, warmup):
    law = laws.LRAnnealing(decay=0.999, warmup=warmup)
    result = scaling_laws.fit(law, load(size, TRAIN))
    assert result.objective <= 1.001 * ANNEALING[size, warmup]
    assert result.objective >= 0.999 * ANNEALING[size, warmup]
    assert result.diagnostics.hit_rate == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("size", MULTI_POWER)
def test_multi_power_reaches_its_optimum_with_every_drop_exact(size):
    data = load(size, TRAIN)
    law = laws.MultiPower()
    result = scaling_laws.fit(law, data)
    assert result.objective <= 1.01 * MULTI_POWER[size]
    inputs, _ = _data.curve_inputs(law, data, exact=True)
    measured = np.concatenate([c.losses for c in data])
    with jax.enable_x64(True):
        predicted = law.predict(result.params, jax.tree.map(jnp.asarray, inputs))
        terms = _robust.value("huber", 1e-3, jnp.log(predicted) - jnp.log(measured))
        exact = float(jnp.sum(terms))
    assert exact == pytest.approx(result.objective, rel=1e-3)
    assert exact <= 1.01 * MULTI_POWER[size]
    told = any("gamma" in warning for warning in result.diagnostics.warnings)
    assert told == (result.params["gamma"] >= 1)


@pytest.mark.slow
def test_curve_intervals_cover_runs_that_were_not_fitted():
    """Nominal 95 % of the unshared points of twelve runs."""
    shares = []
    for size in ("25M", "100M"):
        result = scaling_laws.fit(laws.LRAnnealing(), load(size, TRAIN))
        shares += scaling_laws.coverage(result, load(size, TEST)).values()
    assert np.mean(shares) >= 0.92, shares


@pytest.mark.slow
def test_our_law_beside_multi_power_on_unshared_steps():
    """Two parameters fewer, and lower errors in all four numbers."""
    for size in ("25M", "100M"):
        data, unseen = load(size, TRAIN), load(size, TEST)
        rows = scaling_laws.compare([laws.PowerRelaxation(), laws.MultiPower()], data, unseen)
        ours, peer = sorted(rows, key=lambda row: row["num_parameters"])
        assert (ours["num_parameters"], peer["num_parameters"]) == (5, 7)
        for measure in ("PredE", "WorstE"):
            assert ours["held_out"][measure] < peer["held_out"][measure]
