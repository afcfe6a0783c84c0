"""Softmax attention that is the gradient of softmax regression: heads, modules, stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from in_context import attention_gradient, predictors, softmax_attention, softmax_regression


def instance(seed=0, n=25, d=5, queries=5):
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(n, d)), rng.dirichlet(np.ones(n))
    return A, rng.normal(size=d), b, rng.normal(size=(queries, d))


def error(A, x, b, queries, **options):
    exact = queries @ np.asarray(jax.grad(loss)(jnp.asarray(x), A, b))
    return np.abs(attention_gradient.head_gradient(A, x, b, queries, **options) - exact).max() / (
        np.abs(exact).max()
    )


def loss(x, A, b):
    return 0.5 * jnp.sum((jax.nn.softmax(A @ x) - b) ** 2)


def test_one_head_is_linear_and_two_are_quadratic_in_eps():
    with jax.enable_x64(True):
        for seed in range(5):
            parts = instance(seed)
            ones = [error(*parts, eps=eps, num_heads=1) for eps in (1e-3, 1e-4, 1e-5)]
            twos = [error(*parts, eps=eps, num_heads=2) for eps in (1e-2, 1e-3, 1e-4)]
            if seed == 0:  # the slopes are the same for every instance, the constants are not
                assert ones[1] <= 1e-4
                assert twos[2] <= 2e-8
            for errors, slope, tolerance in ((ones, 1.0, 0.02), (twos, 2.0, 0.05)):
                slopes = np.log10(np.divide(errors[:-1], errors[1:]))
                np.testing.assert_allclose(slopes, slope, atol=tolerance)


def test_error_of_one_head_stays_below_its_bound():
    with jax.enable_x64(True):
        A, x, b, queries = instance(1)
        exact = queries @ np.asarray(softmax_regression.gradient(A, x, b))
        for eps in (1.0, 0.1, 1e-3):
            answer = attention_gradient.head_gradient(A, x, b, queries, eps=eps, num_heads=1)
            bound = attention_gradient.one_head_error_bound(A, x, b, queries, eps=eps)
            assert (np.abs(answer - exact) <= bound).all()


def test_weights_in_a_flax_attention_module():
    """The constructed weights, put into flax's own module, make the gradient."""
    with jax.enable_x64(True):
        A, x, b, queries = instance()
        n, d = A.shape
        # flax takes its softmax in float32, so eps stays large: rounding 1e-7 / eps.
        weights = attention_gradient.gradient_heads(d, eps=1e-2, num_heads=2, learning_rate=-1.0)
        tokens = attention_gradient.make_tokens(A, x, b, queries)
        module = nnx.MultiHeadAttention(
            num_heads=2,
            in_features=tokens.shape[1],
            qkv_features=2 * (d + 1),
            use_bias=False,
            decode=False,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        module.query.kernel[...] = weights.query
        module.key.kernel[...] = weights.key
        module.value.kernel[...] = weights.value
        module.out.kernel[...] = weights.output
        moved = module(tokens[n:], tokens[:n])
        ours = attention_gradient.attention(weights, tokens, num_context=n)[n:]
        np.testing.assert_allclose(ours, moved, rtol=0, atol=1e-6)
        exact = queries @ np.asarray(softmax_regression.gradient(A, x, b))
        np.testing.assert_allclose(
            moved[:, d + attention_gradient.LOGIT], exact, atol=1e-3 * np.abs(exact).max()
        )


@pytest.mark.parametrize("num_heads", [1, 2])
def test_k_layers_are_k_gradient_steps(num_heads):
    with jax.enable_x64(True):
        A, _, b, queries = instance(2)
        steps, rate = 12, 3.0
        stack = attention_gradient.stack(
            A,
            b,
            queries,
            num_layers=steps,
            learning_rate=rate,
            eps=1e-4 if num_heads == 2 else 1e-8,
            num_heads=num_heads,
        )
        x = jnp.zeros(5)
        gradient = jax.jit(jax.grad(loss))
        for step in range(steps):
            x = x - rate * gradient(x, A, b)
            np.testing.assert_allclose(stack.logits[step + 1], A @ x, rtol=0, atol=1e-6)
            np.testing.assert_allclose(stack.query_logits[step + 1], queries @ x, rtol=0, atol=1e-6)
        assert np.abs(A @ x).max() > 0.1  # the steps went somewhere


def test_at_zero_two_heads_are_the_debiased_gradient_step():
    """The identity that joins softmax regression to trained two-head attention."""
    with jax.enable_x64(True):
        A, _, b, queries = instance(3)
        n, eps = len(b), 1e-4
        exact = -queries @ np.asarray(softmax_regression.gradient(A, np.zeros(5), b))
        for query, value in zip(queries, exact):
            prompt = (A, b, query)
            heads = softmax_attention.apply_heads(
                np.array([eps, -eps]), np.array([1, -1]) / (2 * eps), prompt
            )
            np.testing.assert_allclose(heads, value, atol=1e-8 * np.abs(exact).max())
            np.testing.assert_allclose(predictors.debiased(prompt, 1 / n), value, rtol=1e-10)


def test_refuses_bad_arguments():
    A, x, b, queries = instance()
    with pytest.raises(ValueError, match="num_heads must be 1 or 2, got 3"):
        attention_gradient.head_gradient(A, x, b, queries, eps=1e-3, num_heads=3)
    with pytest.raises(ValueError, match="eps must be finite and > 0"):
        attention_gradient.gradient_heads(5, eps=0.0)
    with pytest.raises(ValueError, match="queries must have shape"):
        attention_gradient.head_gradient(A, x, b, queries[:, :2], eps=1e-3)
