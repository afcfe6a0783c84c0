"""Polar factors by matrix products: convergence, certificates, rank deficiency, edge cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lion_lyapunov import kappas as K
from lion_lyapunov import lion_k
from lion_lyapunov._polar import JORDAN, certified_range, minimax_schedule, newton_schulz, polar

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


RNG = np.random.default_rng(0)


def with_singular_values(values, shape):
    u = np.linalg.qr(RNG.normal(size=(shape[0], len(values))))[0]
    v = np.linalg.qr(RNG.normal(size=(shape[1], len(values))))[0]
    return u @ np.diag(values) @ v.T, u @ v.T


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_polar_is_the_isometry_of_the_svd(shape, scale):
    z, isometry = with_singular_values(np.geomspace(1.0, 1e-3, min(shape)), shape)
    with jax.enable_x64(True):
        out = jit(polar)(jnp.asarray(scale * z))
        np.testing.assert_allclose(out, isometry, rtol=0, atol=1e-10)


def test_polar_in_float32_is_orthogonal_to_a_millionth():
    z = jnp.asarray(RNG.normal(size=(48, 96)), jnp.float32)
    out = np.asarray(jit(polar)(z), np.float64)
    assert np.abs(out @ out.T - np.eye(48)).max() <= 1e-6


def test_rank_one_keeps_its_isometry():
    z, isometry = with_singular_values([3.0], (6, 4))
    with jax.enable_x64(True):
        for method in ("polar", "svd"):
            slope = jit(K.nuclear(method).subgradient)
            np.testing.assert_allclose(slope(jnp.asarray(z)), isometry, atol=1e-12)
    single = jit(polar)(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(single, isometry, atol=3e-6)


@pytest.mark.parametrize("method", ["polar", "svd", "newton_schulz"])
def test_zero_sign_and_nan(method):
    kappa = K.nuclear(method)
    stack = jnp.stack([jnp.zeros((2, 2)), -2.0 * jnp.diag(jnp.array([1.0, 0.0]))])
    slope, grad = jit(jax.vmap(lambda z: (kappa.subgradient(z), jax.grad(kappa.value)(z))))(stack)
    assert not np.any(slope[0])
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(slope[1, 0, 0], -1.0, rtol=0.3)
    assert np.isnan(jit(kappa.subgradient)(jnp.full((2, 2), jnp.nan))).all()


@pytest.mark.parametrize("error", [1e-2, 1e-6])
def test_error_of_polar_is_what_was_asked_for(error):
    z, _ = with_singular_values(np.geomspace(1.0, 1e-4, 8), (8, 8))
    with jax.enable_x64(True):
        out = jit(lambda z: polar(z, error=error, smallest=1e-5))(jnp.asarray(z))
    values = np.linalg.svd(out, compute_uv=False)
    assert values.max() <= 1 + 1e-10
    assert values.min() >= 1 - 5 * error


@pytest.mark.parametrize("schedule", [JORDAN, minimax_schedule(1e-3, num_steps=5)])
def test_certificate_is_the_exact_range(schedule):
    x = np.concatenate([np.linspace(0, 1, 400_001), np.geomspace(1e-6, 1, 100_001)])
    y = x.copy()
    for a, b, c in schedule:
        y = a * y + b * y**3 + c * y**5
    bound = certified_range(schedule, 0.01)
    assert bound.high >= y.max()
    assert bound.high <= y.max() + 1e-6
    assert bound.low <= y[x >= 0.01].min()
    assert bound.low >= y[x >= 0.01].min() - 1e-6


def test_jordan_s_steps_are_those_of_optax():
    z = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    theirs = optax.contrib.muon(1.0, nesterov=False)
    expected, _ = theirs.update({"w": z}, theirs.init({"w": z}), {"w": z})
    ours = newton_schulz(z, schedule=JORDAN)
    # optax divides by the Frobenius norm; the same singular values then take the same five steps.
    values = np.linalg.svd(np.asarray(z, np.float64), compute_uv=False)
    for out, scale, top in (
        (expected["w"], np.linalg.norm(values), 1.0),
        (ours, np.sum(values**4) ** 0.25, certified_range(JORDAN).high),
    ):
        y = values / scale
        for _ in range(5):
            y = 3.4445 * y - 4.7750 * y**3 + 2.0315 * y**5
        got = np.linalg.svd(np.asarray(out, np.float64), compute_uv=False)
        np.testing.assert_allclose(got, np.sort(y / top)[::-1], rtol=2e-3)


def test_minimax_steps_do_better_than_equal_steps():
    best = certified_range(minimax_schedule(1e-3, num_steps=5), 1e-3)
    jordan = certified_range(JORDAN, 1e-3)
    assert best.low / best.high > 0.79
    assert jordan.low / jordan.high < 0.40


@pytest.mark.parametrize("schedule", [None, JORDAN])
def test_newton_schulz_never_exceeds_one(schedule):
    stack = jnp.asarray(RNG.normal(size=(200, 6, 4)), jnp.float32)
    out = jit(jax.vmap(lambda z: newton_schulz(z, schedule=schedule)))(stack)
    values = np.linalg.svd(out, compute_uv=False)
    assert values.max() <= 1.0
    assert values.max() > 0.9


def test_spectral_constraint_holds_with_newton_schulz_and_fails_without_certificate():
    decay, rate = 2.0, 0.05
    grads = jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32)

    def largest(optimizer):
        def step(carry, index):
            x, state = carry
            # The gradient turns, so that every singular value passes through the iteration's peak.
            turned = grads * (1.0 + 0.5 * jnp.sin(0.3 * index))
            updates, state = optimizer.update(turned, state, x)
            return (x + updates, state), jnp.linalg.norm(x, ord=2)

        x = jnp.zeros((12, 8))
        run = jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), jnp.arange(400.0))[1])
        return float(run(x).max()) * decay

    certified = lion_k(rate, K.nuclear("newton_schulz"), weight_decay=decay)
    assert 0.75 <= largest(certified) <= 1.0
    plain = optax.contrib.muon(rate, weight_decay=decay)
    assert largest(plain) > 1.05


def test_matrix_kappas_refuse_vectors_and_wrap_kernels():
    with pytest.raises(ValueError, match="needs a matrix, got an array of shape"):
        K.nuclear().subgradient(jnp.ones(3))
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)
    slope = K.as_matrix(K.nuclear("svd")).subgradient(kernel)
    assert slope.shape == kernel.shape
    flat = np.asarray(slope).reshape(18, 4)
    np.testing.assert_allclose(flat.T @ flat, np.eye(4), atol=1e-5)
    stack = jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)
    each = K.batched(K.nuclear("svd")).subgradient(stack)
    np.testing.assert_allclose(each[1], K.nuclear("svd").subgradient(stack[1]), atol=1e-6)
