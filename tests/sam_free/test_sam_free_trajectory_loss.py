"""The trajectory loss against mpmath, its closed gradient, and inputs that break naive code."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from sam_free import trajectory_loss

RNG = np.random.default_rng(0)
NOW = RNG.normal(size=(6, 5)) * 4
PAST = RNG.normal(size=(6, 5)) * 4


def exact_loss(now, past, temperature, scale):
    def probabilities(row):
        powers = [mpmath.e ** (mpmath.mpf(float(z)) / temperature) for z in row]
        return [power / mpmath.fsum(powers) for power in powers]

    with mpmath.workdps(40):
        p, q = probabilities(past), probabilities(now)
        return float(scale * mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q)))


@pytest.mark.parametrize("temperature", [0.7, 5.0])
@pytest.mark.parametrize("tau_squared", [True, False])
def test_value_and_gradient_are_the_formula(temperature, tau_squared):
    scale = temperature**2 if tau_squared else 1.0
    expected = [exact_loss(a, b, temperature, scale) for a, b in zip(NOW, PAST)]
    soft_now, soft_past = (
        np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in (NOW, PAST)
    )
    slope = scale / temperature * (soft_now - soft_past)

    def total(now, past):
        return trajectory_loss(now, past, temperature=temperature, tau_squared=tau_squared).sum()

    with jax.enable_x64(True):
        loss = trajectory_loss(
            jnp.asarray(NOW), jnp.asarray(PAST), temperature=temperature, tau_squared=tau_squared
        )
        to_now, to_past = jax.grad(total, argnums=(0, 1))(jnp.asarray(NOW), jnp.asarray(PAST))
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(to_now, slope, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(to_past, np.zeros_like(PAST))
    single = trajectory_loss(
        jnp.asarray(NOW, jnp.float32),
        jnp.asarray(PAST, jnp.float32),
        temperature=temperature,
        tau_squared=tau_squared,
    )
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=2e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_stay_finite_in_float32(size):
    now = jnp.array([[size, 0.0, -size]], jnp.float32)
    past = jnp.array([[-size, 0.0, size]], jnp.float32)
    loss, slope = jax.value_and_grad(lambda z: trajectory_loss(z, past).sum())(now)
    # All of p is on the last class, all of q on the first: the loss is 25 * 2 size / 5.
    np.testing.assert_allclose(loss, 10 * size, rtol=1e-6)
    np.testing.assert_allclose(slope, [[5.0, 0.0, -5.0]], atol=1e-6)
    assert float(trajectory_loss(now, now)[0]) == 0.0


def test_half_precision_is_computed_in_single():
    now, past = jnp.asarray(NOW, jnp.bfloat16), jnp.asarray(PAST, jnp.float16)
    loss = trajectory_loss(now, past)
    assert loss.dtype == jnp.bfloat16
    exact = trajectory_loss(now.astype(jnp.float32), past.astype(jnp.float32))
    np.testing.assert_array_equal(loss, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_bad_temperature_is_named(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        trajectory_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), temperature=temperature)


@pytest.mark.parametrize(
    ("now", "past", "message"),
    [
        (jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3)), "floating point, got dtype int32"),
        (jnp.zeros((2, 3)), jnp.zeros((2, 4)), r"shape of logits, \(2, 3\), got \(2, 4\)"),
        (jnp.zeros((3,)), jnp.zeros((3,)), r"\[batch, classes\], got \(3,\)"),
    ],
)
def test_a_bad_array_is_named(now, past, message):
    with pytest.raises(ValueError, match=message):
        trajectory_loss(now, past)
