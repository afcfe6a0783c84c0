"""Weight shifts: the identity that defines them, and no violation of their bounds."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from in_context import weight_shift

BATCH = 5000


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def instances(seed, n, d):
    """Random instances: scales over two decades, steps over ten."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-1, 1, size=(BATCH, 1, 1))
    A = scale * rng.normal(size=(BATCH, n, d))
    x = rng.normal(size=(BATCH, d)) * 10 ** rng.uniform(-1, 1, size=(BATCH, 1))
    dx = rng.normal(size=(BATCH, d)) * 10 ** rng.uniform(-9, 1, size=(BATCH, 1))
    dA = rng.normal(size=A.shape) * 10 ** rng.uniform(-9, 1, size=(BATCH, 1, 1))
    return A, x, dx, dA, rng.dirichlet(np.ones(n), BATCH)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (6, 3), (32, 16)])
def test_no_violation_and_the_identity(n, d):
    with jax.enable_x64(True):
        A, x, dx, dA, b = instances(n, n, d)
        for shift, moved in (
            (weight_shift.shift_x(A, x, dx, b), np.einsum("bnd,bd->bn", A, x + dx)),
            (weight_shift.shift_a(A, x, dA, b), np.einsum("bnd,bd->bn", A + dA, x)),
        ):
            logits = np.einsum("bnd,bd->bn", A, x)
            # f(new) - b = f(old) - target; the NumPy side rounds its logits.
            rounding = 1e-14 * (1 + np.abs(moved).max(axis=1, keepdims=True))
            difference = (softmax(moved) - b) - (softmax(logits) - shift.target)
            assert (np.abs(difference) <= rounding).all()
            assert shift.certificate.holds.all()
            assert (np.log(np.maximum(shift.norm, 1e-300)) <= shift.log_published_bound).all()
            assert float(shift.sharp_bound.max()) <= np.sqrt(2)
        close = weight_shift.closeness(A, x, dx, dA)
        assert close.holds.all()


def test_first_order_prediction_and_remainder():
    with jax.enable_x64(True):
        A, x, dx, _, _ = instances(0, 6, 3)
        zero = np.zeros((BATCH, 6))  # b = 0, so that the target is the shift itself
        shift = weight_shift.shift_x(A, x, dx, zero)
        remainder = np.linalg.norm(shift.target - shift.first_order, axis=1)
        # Below, both sides are rounding errors of the change itself.
        large = np.asarray(shift.remainder_bound) > 1e-14
        assert large.sum() > 1000
        assert (remainder <= np.asarray(shift.remainder_bound) + 1e-16)[large].all()
        assert (remainder / shift.remainder_bound)[large].max() > 0.05


def test_equal_logits_show_that_one_half_is_sharp():
    with jax.enable_x64(True):
        A = np.array([[1.0, 0.3], [-1.0, 0.3]])
        shift = weight_shift.shift_x(A, np.zeros(2), np.array([1e-4, 0.0]), np.array([0.4, 0.6]))
        assert 0.9999 <= float(shift.certificate.ratio) <= 1.0
        direction = np.array([[1.0], [-1.0]]) / np.sqrt(2)
        shift = weight_shift.shift_a(
            np.zeros((2, 1)), np.ones(1), 1e-4 * direction, np.array([0.4, 0.6])
        )
        assert 0.9999 <= float(shift.certificate.ratio) <= 1.0


def test_certificates_say_no_to_a_constant_below_one_half(monkeypatch):
    monkeypatch.setattr(weight_shift, "LIPSCHITZ", 0.49)
    with jax.enable_x64(True), jax.disable_jit():
        pair, b, step = np.array([[1.0], [-1.0]]), np.full(2, 0.5), np.array([1e-3])
        zero, one = np.zeros(1), np.ones(1)
        assert not bool(weight_shift.shift_x(pair, zero, step, b).certificate.holds)
        assert not bool(weight_shift.shift_a(0 * pair, one, 1e-3 * pair, b).certificate.holds)
        assert not bool(weight_shift.closeness(pair, zero, step, 0 * pair).holds)


def test_tiny_steps_keep_their_digits():
    with jax.enable_x64(True), mpmath.workdps(50):
        A = np.array([[0.3, -1.0], [0.7, 0.2], [-0.5, 0.9]])
        x, dx = np.array([0.4, -0.8]), np.array([3e-13, -5e-13])
        shift = weight_shift.shift_x(A, x, dx, np.zeros(3))

        def f(point):
            z = [mpmath.fsum(mpmath.mpf(a) * p for a, p in zip(row, point)) for row in A.tolist()]
            e = [mpmath.exp(value) for value in z]
            return [value / mpmath.fsum(e) for value in e]

        old = [mpmath.mpf(value) for value in x.tolist()]
        new = [value + mpmath.mpf(step) for value, step in zip(old, dx.tolist())]
        expected = [float(a - b) for a, b in zip(f(old), f(new))]
        np.testing.assert_allclose(shift.target, expected, rtol=1e-12)


def test_published_constant_is_the_chain_of_lemmas():
    n, R = 25, 1.3
    E = 2 * np.sqrt(n) * R * np.exp(R**2)
    beta = n * np.exp(-(R**2))
    chain = E * (1 / beta + n * np.exp(R**2) / beta**2)
    with jax.enable_x64(True):
        assert weight_shift.published_constant(n, R) == pytest.approx(np.log(chain), rel=1e-14)
        # At the published R >= 4 it exceeds the sharp constant by 27 orders of magnitude.
        excess = weight_shift.published_constant(25, 4.0) - np.log(0.5 * 4.0)
        assert 27 < excess / np.log(10) < 28


def test_one_instance_a_batch_and_a_shared_document_agree():
    with jax.enable_x64(True):
        A, x, dx, _, b = (part[:4] for part in instances(1, 6, 3))
        batch = weight_shift.shift_x(A[0], x, dx, b)
        for place in range(4):
            one = weight_shift.shift_x(A[0], x[place], dx[place], b[place])
            np.testing.assert_allclose(batch.target[place], one.target, rtol=1e-12)
            np.testing.assert_allclose(batch.sharp_bound[place], one.sharp_bound, rtol=1e-12)
        mapped = jax.vmap(weight_shift.shift_x)(A, x, dx, b)
        np.testing.assert_allclose(mapped.norm, weight_shift.shift_x(A, x, dx, b).norm, rtol=1e-12)


def test_published_assumptions_and_float32():
    A, b = jnp.ones((3, 2)), jnp.ones(3) / 3
    small = weight_shift.shift_x(A, jnp.zeros(2), jnp.full(2, 1e-3), b)
    large = weight_shift.shift_x(A, jnp.zeros(2), jnp.full(2, 1.0), b)
    assert bool(small.certificate.published_assumptions)
    assert not bool(large.certificate.published_assumptions)
    assert small.target.dtype == jnp.float32
    still = weight_shift.shift_x(A, jnp.zeros(2), jnp.zeros(2), b)
    assert float(still.certificate.ratio) == 0.0
    assert bool(still.certificate.holds)


def test_refuses_bad_arguments():
    A, x, dx, _, b = (part[:4] for part in instances(1, 6, 3))
    with pytest.raises(ValueError, match=r"shift_x: dx must have trailing shape \(3,\)"):
        weight_shift.shift_x(A, x, dx[:, :2], b)
    with pytest.raises(ValueError, match="leading axes must agree"):
        weight_shift.shift_x(A, x[:3], dx, b)
    with pytest.raises(ValueError, match="dA holds"):
        weight_shift.shift_a(A, x, np.full_like(A, np.nan), b)
    with pytest.raises(ValueError, match="radius must be finite and > 0"):
        weight_shift.published_constant(3, 0.0)
