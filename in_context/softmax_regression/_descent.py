"""Gradient descent on softmax regression, with a step that cannot overshoot."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.softmax_regression import _objective as objective
from in_context.softmax_regression._convexity import safe_learning_rate

Array = jax.Array


class DescentResult(NamedTuple):
    """Where gradient descent ended and how it came there."""

    x: Array  # [d]
    loss: Array  # scalar, at x
    learning_rate: Array  # scalar, the one that was used
    losses: Array  # [num_steps + 1], from the start to x


def gradient_descent(
    A: Any,
    b: Any,
    *,
    num_steps: int,
    weights: Any = None,
    x0: Any = None,
    learning_rate: float | None = None,
) -> DescentResult:
    """Runs x <- x - learning_rate * gradient.

    Args:
      A: [n, d]; b: [n]; weights: [n] or None.
      num_steps: how many steps; each costs O(n d).
      x0: [d], the start; zero if None.
      learning_rate: None takes `safe_learning_rate`, with which the loss never rises.
    Raises:
      ValueError: shapes disagree, an argument holds NaN or infinity, num_steps < 1 or
        learning_rate <= 0.
    """
    _check.integer("gradient_descent", num_steps=num_steps)
    _check.number("gradient_descent", low=0.0, strict=True, learning_rate=learning_rate)
    start = jnp.zeros(np.shape(A)[1:], jnp.asarray(A).dtype) if x0 is None else x0
    A, x, b, weights = objective.prepare("gradient_descent", A, start, b, weights)
    if learning_rate is None:
        safe = safe_learning_rate(A, b, weights=weights)
        step = jnp.where(jnp.isfinite(safe), safe, 1.0)  # a constant loss: nothing moves
    else:
        step = jnp.asarray(learning_rate, A.dtype)
    x, losses = _run(A, x, b, weights, step, num_steps)
    return DescentResult(x, losses[-1], step, losses)


@functools.partial(jax.jit, static_argnums=5)
def _run(A, x, b, weights, step, num_steps):
    def body(x, _):
        x = x - step * objective.gradient(A, x, b, weights=weights)
        return x, objective.loss(A, x, b, weights=weights)

    first = objective.loss(A, x, b, weights=weights)
    x, later = jax.lax.scan(body, x, length=num_steps)
    return x, jnp.concatenate([first[None], later])
