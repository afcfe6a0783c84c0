"""Newton with the curvature of a sample of rows, for documents with far more rows than columns.

At n >> d a Newton step costs O(n d^2) for the Hessian and O(n d) for everything else. The Hessian
is a sum over rows, so a sample of m rows estimates it in O(m d^2): rows are drawn with probability
p_i proportional to ||a_i||^2 and weighted by 1 / (m p_i). Loss and gradient use every row, so the
minimum is the exact one; convergence is linear, the faster the more rows. (Deng, Li & Song,
arXiv:2304.10411, sample by leverage scores, which cost as much as an exact Hessian.)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.softmax_regression import _objective as objective
from in_context.softmax_regression._direction import newton_direction

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class SampledNewtonResult(NamedTuple):
    """Where one start ended; `newton` gives a certificate as well."""

    x: Array  # [d]
    loss: Array  # scalar
    gradient_norm: Array  # scalar
    num_iterations: Array  # int
    converged: Array  # bool: the gradient has shrunk by `tolerance`


class _State(NamedTuple):
    x: Array
    logits: Array  # A x, carried along
    loss: Array
    gradient: Array
    mean: Array  # f^T A
    curvature: Array  # v of the objective's module
    step: Array
    stuck: Array


def sampled_newton(
    A: Any,
    b: Any,
    *,
    num_sampled: int,
    key: Array,
    weights: Any = None,
    x0: Any = None,
    max_iterations: int = 100,
    tolerance: float = 1e-8,
) -> SampledNewtonResult:
    """Minimises `loss` over x from one start.

    Args:
      A: [n, d] with n >> d; b: [n]; weights: [n] or None.
      num_sampled: m, rows in the Hessian, with replacement; n or more takes every row once, which
        is the exact Newton. Too few (below some n / 10) do not converge.
      key: of the sample, which is drawn once.
      x0: [d], the start; zero if None.
      max_iterations: at most so many steps.
      tolerance: stops where the gradient is this much smaller than at the start.
    Raises:
      ValueError: shapes disagree, an argument holds NaN or infinity, or a number is out of range.
    """
    name = "sampled_newton"
    _check.integer(name, num_sampled=num_sampled, max_iterations=max_iterations)
    _check.number(name, low=0.0, strict=True, tolerance=tolerance)
    start = jnp.zeros(np.shape(A)[1:], jnp.asarray(A).dtype) if x0 is None else x0
    A, x, b, weights = objective.prepare(name, A, start, b, weights)
    weights = jnp.zeros_like(b) if weights is None else weights
    count = None if num_sampled >= len(b) else num_sampled
    end, first = _run(A, b, weights, x, key, tolerance, count, max_iterations)
    norm = jnp.linalg.norm(end.gradient)
    return SampledNewtonResult(end.x, end.loss, norm, end.step, norm <= tolerance * first)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _run(A, b, weights, x, key, tolerance, count, max_iterations):
    epsilon = jnp.finfo(A.dtype).eps
    sample, weigh = A.T, lambda per_row: per_row
    if count is not None:
        size = jnp.sum(A**2, axis=1)
        rows = jax.random.choice(key, len(b), (count,), p=size / jnp.sum(size))
        share = jnp.sum(size) / (count * size[rows])
        sample, weigh = A[rows].T, lambda per_row: share * per_row[rows]
    ridge = jnp.matmul(sample * weigh(weights**2)[None, :], sample.T, precision=HIGHEST)

    def value(logits):
        residual = jax.nn.softmax(logits) - b
        return 0.5 * jnp.sum(residual**2) + 0.5 * jnp.sum((weights * logits) ** 2)

    def at(x, logits, step, stuck):
        f = jax.nn.softmax(logits)
        c = f - b
        inner = jnp.sum(f * c)
        both = jnp.stack([f * (c - inner) + weights**2 * logits, f])
        gradient, mean = jnp.matmul(both, A, precision=HIGHEST)  # one pass over A for the two
        return _State(x, logits, value(logits), gradient, mean, f * (f + c - inner), step, stuck)

    def body(state):
        centred = sample - state.mean[:, None]
        scaled = centred * weigh(state.curvature)[None, :]
        matrix = jnp.matmul(scaled, centred.T, precision=HIGHEST) + ridge
        direction, fall = newton_direction(matrix, state.gradient)
        moved = jnp.matmul(A, direction, precision=HIGHEST)
        rounding = 4 * epsilon * jnp.abs(state.loss)

        def too_far(length):
            new = value(state.logits + length * moved)
            return (new > state.loss + 1e-4 * length * fall + rounding) & (length > 1e-12)

        length = jax.lax.while_loop(too_far, lambda length: 0.5 * length, jnp.ones((), A.dtype))
        x = state.x + length * direction
        return at(x, state.logits + length * moved, state.step + 1, length <= 1e-12)

    state = at(x, jnp.matmul(A, x, precision=HIGHEST), jnp.array(0), jnp.array(False))
    first = jnp.linalg.norm(state.gradient)

    def running(state):
        large = jnp.linalg.norm(state.gradient) > tolerance * first
        return large & ~state.stuck & (state.step < max_iterations)

    return jax.lax.while_loop(running, body, state), first
