"""The weights that make linear self-attention a step of gradient descent, token by token.

Von Oswald et al. (arXiv:2212.07677): tokens (x, y) with W_K = W_Q = diag(I_x, 0), W_V = diag(0,
-I_y) and an output scale learning_rate move every y by minus the step's prediction; the query
starts at y = 0, and its answer is minus its last entry. k tied layers make k steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class TokenWeights(NamedTuple):
    """A layer token <- token + P V sum_i (K token_i)^T (Q token) token_i, all [d + 1, d + 1]."""

    query: Array
    key: Array
    value: Array
    output: Array


def gradient_descent_weights(dim: int, learning_rate: Any, *, curvature: Any = 0.0) -> TokenWeights:
    """The construction; `curvature` > 0 is GD++, which also whitens the inputs.

    Args:
      dim: d.
      learning_rate: of the step on the sum over the context.
      curvature: gamma of x <- (I - gamma X^T X) x.
    """
    _check.integer("gradient_descent_weights", dim=dim)
    inputs = jnp.diag(jnp.ones(dim + 1).at[dim].set(0.0))
    answers = jnp.eye(dim + 1) - inputs
    value = -learning_rate * answers - curvature * inputs
    return TokenWeights(inputs, inputs, value, jnp.eye(dim + 1))


def token_stack(weights: TokenWeights, prompt: Any, *, num_layers: int) -> Array:
    """The answers [num_layers, ...] after each of `num_layers` tied layers.

    Args:
      weights: of one layer.
      prompt: x [..., n, d], y [..., n], query [..., d].
      num_layers: k. Only the context is attended to.
    """
    _check.integer("token_stack", num_layers=num_layers)
    x, y, query = prompt[:3]
    context = jnp.concatenate([x, y[..., None]], axis=-1)
    asked = jnp.concatenate([query, jnp.zeros(query.shape[:-1] + (1,), query.dtype)], axis=-1)
    tokens = jnp.concatenate([context, asked[..., None, :]], axis=-2)
    n = x.shape[-2]

    def times(matrix, rows):
        return jnp.einsum("ef,...nf->...ne", matrix, rows, precision=HIGHEST)

    def layer(tokens, _):
        seen = tokens[..., :n, :]
        scores = jnp.einsum(
            "...te,...ne->...tn",
            times(weights.query, tokens),
            times(weights.key, seen),
            precision=HIGHEST,
        )
        mixed = jnp.einsum(
            "...tn,...ne->...te", scores, times(weights.value, seen), precision=HIGHEST
        )
        tokens = tokens + times(weights.output, mixed)
        return tokens, -tokens[..., n, -1]

    _, answers = jax.lax.scan(layer, tokens, length=num_layers)
    return answers
