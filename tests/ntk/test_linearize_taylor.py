"""Taylor expansions in the parameters against polynomials known in closed form and nested jvp."""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ntk
from ntk._linearize import _nested_terms


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def mlp(params, x):
    w, v = params
    return jnp.tanh(x @ w) @ v


def cnn(params, x):
    x = lax.conv_general_dilated(
        x, params[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.gelu(x).mean((1, 2)) @ params[1]


@pytest.mark.parametrize("degree", [0, 3, 5])
def test_polynomials_are_expanded_exactly(degree):
    # f = (w + 2)^4 about w = 1: binomial coefficients.
    expanded = ntk.taylor_expand(lambda w, x: x * (w + 2.0) ** 4, jnp.float32(1.0), degree)
    expected = sum(comb(4, k) * 3.0 ** (4 - k) * 0.5**k for k in range(min(degree, 4) + 1))
    np.testing.assert_allclose(expanded(jnp.float32(1.5), 2.0), 2 * expected, rtol=1e-6)


SLOW = ("relu", "silu", "softplus", "softmax", "erf")
ACTIVATIONS = ["tanh", "gelu", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jet_agrees_with_nested_derivatives(activation):
    functions = {
        name: getattr(jax.nn, name) for name in ("relu", "gelu", "silu", "softplus", "softmax")
    }
    functions |= {"tanh": jnp.tanh, "erf": jax.scipy.special.erf}
    with jax.enable_x64(True):
        x, params = normal(0, 3, 4), [normal(1, 4, 5), normal(2, 5, 2)]
        moved = [p + 0.2 * normal(3 + k, *p.shape) for k, p in enumerate(params)]

        def f(p, x):
            return functions[activation](x @ p[0]) @ p[1]

        found = ntk.taylor_expand(f, params, 4)(moved, x)
        direction = [m - p for m, p in zip(moved, params)]
        value, terms = _nested_terms(lambda p: f(p, x), params, direction, 4)
        for order, term in enumerate(terms, start=1):
            value = value + term / np.prod(np.arange(1, order + 1))
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12 * float(abs(value).max()))


@pytest.mark.parametrize("network", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_linearization_matches_dense_jacobians(network):
    with jax.enable_x64(True):
        if network == "mlp":
            f, params, x = mlp, (normal(0, 4, 5), normal(1, 5, 2)), normal(2, 3, 4)
        else:
            f, params, x = cnn, (normal(0, 3, 3, 2, 4), normal(1, 4, 2)), normal(2, 2, 5, 5, 2)
        moved = jax.tree.map(lambda a: a + 0.3 * jnp.sin(a), params)
        value = np.asarray(f(params, x))
        for jacobian, new, old in zip(jax.jacrev(f)(params, x), moved, params):
            change = np.asarray(new - old).ravel()
            value = value + np.asarray(jacobian).reshape(*value.shape, -1) @ change
        np.testing.assert_allclose(ntk.linearize(f, params)(moved, x), value, rtol=1e-12)


def test_training_the_linear_model_follows_the_closed_form():
    # Full-batch gradient descent with small steps against gradient flow in function space.
    with jax.enable_x64(True):
        params, x, y = (normal(0, 3, 8), normal(1, 8, 1)), normal(2, 5, 3), normal(3, 5, 1)
        linear = ntk.linearize(mlp, params)
        rate, steps = 1e-3, 2000

        def loss(p):
            return 0.5 * jnp.mean((linear(p, x) - y) ** 2)

        def step(p, _):
            return jax.tree.map(lambda a, g: a - rate * g, p, jax.grad(loss)(p)), None

        trained, _ = jax.jit(lambda p: lax.scan(step, p, None, length=steps))(params)
        kernel = ntk.empirical_ntk_fn(mlp, ())(x, None, params)
        flow = ntk.predict.gradient_descent_mse(kernel, y, rate, trace_axes=())
        np.testing.assert_allclose(
            linear(trained, x), flow(float(steps), mlp(params, x)), atol=2e-3
        )


def test_refusals():
    with pytest.raises(ValueError, match="degree must be an integer >= 0"):
        ntk.taylor_expand(mlp, (jnp.ones((2, 2)), jnp.ones((2, 1))), -1)
    with pytest.raises(ValueError, match=r"shape \(3, 1\), but the expansion is about.*\(2, 1\)"):
        ntk.linearize(mlp, (jnp.ones((2, 2)), jnp.ones((2, 1))))(
            (jnp.ones((2, 2)), jnp.ones((3, 1))), jnp.ones((1, 2))
        )
    with pytest.raises(ValueError, match="structure they were expanded at"):
        ntk.linearize(mlp, (jnp.ones((2, 2)), jnp.ones((2, 1))))(
            [jnp.ones((2, 2))], jnp.ones((1, 2))
        )
