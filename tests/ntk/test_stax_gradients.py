"""Derivatives of kernels: finite everywhere, and right against central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax


def network(act, weight=1.3, bias=0.2):
    return stax.serial(
        stax.Dense(1, weight, bias), act, stax.Dense(1, weight, bias), act, stax.Dense(1, weight)
    )[2]


def difference(f, x, direction, step=1e-5):
    """Fourth-order central difference along a direction."""
    near = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
    far = (f(x + 2 * step * direction) - f(x - 2 * step * direction)) / (4 * step)
    return (4 * near - far) / 3


@pytest.mark.parametrize("act", ["Relu", pytest.param("Erf", marks=pytest.mark.slow), "Gelu"])
def test_gradients_in_inputs_and_scales(act):
    rng = np.random.default_rng(0)
    x, y, direction = (rng.normal(size=(3, 4)) for _ in range(3))
    layer = getattr(stax, act)()
    with jax.enable_x64(True):

        def of_input(a):
            return jnp.sum(jnp.sin(network(layer)(a, y, "ntk")))

        def of_scales(scales):
            return jnp.sum(jnp.sin(network(layer, scales[0], scales[1])(x, y, "ntk")))

        slope = float(jnp.vdot(jax.grad(of_input)(jnp.asarray(x)), direction))
        numeric = float(difference(jax.jit(of_input), jnp.asarray(x), direction))
        assert abs(slope - numeric) < 1e-8 * max(1, abs(numeric))
        scales, along = jnp.array([1.3, 0.2]), jnp.array([0.7, -0.4])
        slope = float(jnp.vdot(jax.grad(of_scales)(scales), along))
        numeric = float(difference(jax.jit(of_scales), scales, along))
        assert abs(slope - numeric) < 1e-8 * max(1, abs(numeric))


def test_variances_of_equal_inputs_have_the_slope_of_the_diagonal():
    # ntk(x, x) of a ReLU network without biases is a multiple of |x|^2.
    kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2]
    x = np.random.default_rng(0).normal(size=(2, 3))
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(lambda a: kernel_fn(a, None, "ntk")[0, 0])(jnp.asarray(x))
        slope = np.asarray(slope)
        np.testing.assert_allclose(slope[0], 2 * float(value) * x[0] / (x[0] @ x[0]), rtol=1e-13)
    np.testing.assert_array_equal(slope[1], 0)


@pytest.mark.parametrize(
    "act", ["Relu", "Gelu", *(pytest.param(a, marks=pytest.mark.slow) for a in ("Abs", "Sign"))]
)
def test_mapped_gradients_are_finite_at_duplicates_antipodes_and_zero(act):
    kernel_fn = network(getattr(stax, act)(), bias=None)

    def one(a, b):
        return kernel_fn(a[None], b[None], "ntk")[0, 0]

    a = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    b = jnp.array([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [2.0, 4.0]])
    for slope in jax.jit(jax.vmap(jax.grad(one, (0, 1))))(a, b):
        assert np.isfinite(np.asarray(slope)).all()


def test_gradient_at_a_duplicate_given_as_another_array():
    # nngp(x, y) of a smooth network is differentiable in x at x = y.
    x = np.array([[0.4, -1.1, 0.7]])
    kernel_fn = stax.serial(stax.Dense(1, 1.2, 0.3), stax.Erf(), stax.Dense(1))[2]
    with jax.enable_x64(True):
        f = jax.jit(lambda a: kernel_fn(a, jnp.asarray(x), "nngp")[0, 0])
        slope = np.asarray(jax.grad(f)(jnp.asarray(x)))
        for i in range(3):
            numeric = float(difference(f, jnp.asarray(x), jnp.eye(3)[i][None]))
            assert abs(slope[0, i] - numeric) < 1e-9


@pytest.mark.slow
def test_gradient_through_blocks_of_a_pooled_network(monkeypatch):
    from ntk.stax import _plan

    x = np.random.default_rng(0).normal(size=(5, 4, 3, 2))
    net = stax.serial(stax.Conv(1, (2, 2), padding="SAME"), stax.Relu(), stax.GlobalAvgPool())

    def total(a):
        return jnp.sum(jnp.cos(net.kernel_fn(a, None, "nngp")))

    with jax.enable_x64(True):
        whole = np.asarray(jax.grad(total)(jnp.asarray(x)))
        monkeypatch.setattr(_plan, "ENTRIES", 4 * 144)
        net = stax.serial(stax.Conv(1, (2, 2), padding="SAME"), stax.Relu(), stax.GlobalAvgPool())
        parts = np.asarray(jax.grad(total)(jnp.asarray(x)))
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)
