"""PowerRelaxation is Multi-Power with fixed exponents, and says when a cliff would pay."""

import numpy as np
import pytest

from scaling_laws import curves, laws
from scaling_laws._predict import predict

SHARED = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "B": 500.0, "C": 40.0}


@pytest.mark.parametrize(("exponent", "rate_exponent"), [(0.125, 0.25), (0.25, 1.0), (0.5, 0.0)])
def test_it_is_multi_power_with_fixed_exponents(exponent, rate_exponent):
    rates = curves.cosine(3000, peak=3e-4, end=3e-5, warmup=100)
    at = np.arange(200, 3000, 70)
    ours = laws.PowerRelaxation(exponent=exponent, rate_exponent=rate_exponent)
    peer = laws.MultiPower(warmup="area")
    expected = predict(peer, SHARED | {"beta": exponent, "gamma": rate_exponent}, rates, at)
    np.testing.assert_allclose(predict(ours, SHARED, rates, at), expected, rtol=1e-14)


def test_the_response_is_the_sum_over_drops():
    rates = curves.two_stage(400, switch=200, peak=3e-4, end=3e-5, warmup=10)
    drop = rates[199] - rates[200]
    at = np.arange(20, 400, 7)
    area, after = np.cumsum(rates)[at], np.array([rates[200 : t + 1].sum() for t in at])
    age = SHARED["C"] * after / 3e-5**0.25
    gain = drop * SHARED["B"] * (1 - (1 + age) ** -0.125)
    expected = SHARED["L0"] + SHARED["A"] * area ** -SHARED["alpha"] - gain
    np.testing.assert_allclose(predict(laws.PowerRelaxation(), SHARED, rates, at), expected, 1e-12)


def test_a_rate_exponent_of_one_warns_about_cliffs():
    assert laws.PowerRelaxation().warnings(SHARED) == []
    (warning,) = laws.PowerRelaxation(rate_exponent=1.0).warnings(SHARED)
    assert "rate_exponent is 1" in warning
    assert "floor" in warning


@pytest.mark.parametrize(
    "options", [{"exponent": 0.0}, {"exponent": float("nan")}, {"rate_exponent": float("inf")}]
)
def test_exponents_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        laws.PowerRelaxation(**options)
