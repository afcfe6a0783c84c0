"""The areas against the double sum, term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_laws import learning_rate_areas, piecewise_areas


def double_sum(rates, decay):
    second = np.zeros(len(rates))
    for s in range(len(rates)):
        for i in range(1, s + 1):
            for k in range(1, i + 1):
                second[s] += (rates[k - 1] - rates[k]) * decay ** (i - k)
    return np.cumsum(rates), second


def jagged(steps):
    rng = np.random.default_rng(0)
    rates = 3e-4 * np.cumprod(1 - 0.02 * rng.random(steps))
    rates[: steps // 6] = np.linspace(0, 3e-4, steps // 6)
    rates[steps // 2] *= 3
    return rates


@pytest.mark.parametrize("method", ["blocked", "scan", "associative"])
def test_areas_are_the_double_sum(method):
    rates = jagged(100)
    for decay in (0.3, 0.99, 0.9999):
        first, second = learning_rate_areas(rates, decay=decay, method=method)
        wanted = double_sum(rates, decay)
        np.testing.assert_allclose(first, wanted[0], rtol=1e-12)
        np.testing.assert_allclose(second, wanted[1], atol=1e-10 * np.max(np.abs(wanted[1])))


def test_float32_holds_over_a_million_steps():
    rates = (3e-4 * (0.55 + 0.45 * np.cos(np.pi * np.arange(1_000_000) / 1e6))).astype(np.float32)
    first, second = learning_rate_areas(rates, decay=0.999)
    assert first.dtype == second.dtype == np.float32
    exact = learning_rate_areas(rates.astype(np.float64), decay=0.999, method="scan")
    np.testing.assert_allclose(first, exact[0], rtol=1e-4)
    np.testing.assert_allclose(second[1000:], exact[1][1000:], rtol=1e-4)


def test_areas_are_differentiable_in_rates_and_decay():
    rates = jagged(90)
    mix = np.random.default_rng(1).normal(size=(2, 90))

    def objective(rates, decay, areas=learning_rate_areas):
        first, second = areas(rates, decay=decay)
        return (mix[0] * first).sum() + (mix[1] * second).sum()

    with jax.enable_x64(True):
        slopes = jax.grad(objective, argnums=(0, 1))(jnp.asarray(rates), jnp.asarray(0.97))
        slope_rate, slope_decay = np.asarray(slopes[0]), float(slopes[1])
    eps = 1e-6
    moved = (objective(rates, 0.97 + eps) - objective(rates, 0.97 - eps)) / (2 * eps)
    assert slope_decay == pytest.approx(moved, rel=1e-6)
    step = np.zeros(90)
    step[40] = 1e-6
    moved = (objective(rates + step, 0.97) - objective(rates - step, 0.97)) / 2e-6
    assert slope_rate[40] == pytest.approx(moved, rel=1e-6)


def test_piecewise_form_is_exact_at_its_knots():
    knots, rates = np.array([0, 200, 3000, 3001, 9000]), np.array([1e-5, 3e-4, 3e-4, 9e-5, 1e-6])
    dense = np.interp(np.arange(9001), knots, rates)
    for decay in (0.9, 0.999, 1 - 1e-6):
        first, second = piecewise_areas(knots, rates, decay=decay)
        wanted = learning_rate_areas(dense, decay=decay, method="scan")
        np.testing.assert_allclose(first, wanted[0][knots], rtol=1e-12)
        np.testing.assert_allclose(second, wanted[1][knots], rtol=1e-9, atol=1e-15)


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\), got 1.0"):
        learning_rate_areas([1.0, 0.5], decay=1.0)
    with pytest.raises(ValueError, match=r"learning_rates\[1\] is nan"):
        learning_rate_areas([1.0, np.nan])
    with pytest.raises(ValueError, match=r"shape \[steps\]"):
        learning_rate_areas(np.ones((2, 2)))
    with pytest.raises(ValueError, match="method must be one of"):
        learning_rate_areas([1.0], method="fft")
    with pytest.raises(ValueError, match="knots must increase from 0"):
        piecewise_areas([1, 2], [1.0, 1.0])
