"""The loss of softmax regression and its first two derivatives, in closed form.

Letters, as in Deng, Li & Song (arXiv:2304.10411): f = softmax(A x) in R^n, c = f - b, and
P = diag(f) - f f^T, the derivative of softmax. Then

    gradient = A^T P c,
    Hessian  = A^T B A,  B = diag(v) - v f^T - f v^T + ||f||^2 f f^T,  v = f (2f - b - <f, c>).

Rows shifted by their f-weighted mean, A~ = A - 1 (f^T A), have f^T A~ = 0 and B 1 = 0, so the
three rank-one terms vanish: Hessian = A~^T diag(v) A~. That costs one product of an n x d matrix
with itself, and no n x n matrix is formed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def prepare(caller: str, A: Any, x: Any, b: Any, weights: Any) -> tuple[Array, ...]:
    """Checks one instance and brings it to a common floating dtype."""
    if np.ndim(A) != 2 or 0 in np.shape(A):
        raise ValueError(
            f"{caller}: A must be a matrix [n, d] with n, d >= 1, got shape {np.shape(A)}; "
            "for a batch of instances use jax.vmap."
        )
    n, d = np.shape(A)
    _check.shape(caller, "x", x, (d,), "one per column of A")
    _check.shape(caller, "b", b, (n,), "one per row of A")
    if weights is not None:
        _check.shape(caller, "weights", weights, (n,), "one per row of A")
    _check.finite(caller, A=A, x=x, b=b, weights=weights)
    return _check.floating(A, x, b, weights)


def softmax(A: Any, x: Any) -> Array:
    """f(x) = softmax(A x), the prediction of softmax regression.

    Args:
      A: [n, d]; x: [d].
    Returns:
      [n], positive and summing to 1; exact zeros where a logit trails the largest by 800 or so.
    """
    A, x, _, _ = prepare("softmax", A, x, jnp.zeros(np.shape(A)[:1]), None)
    return jax.nn.softmax(jnp.matmul(A, x, precision=HIGHEST))


def loss(A: Any, x: Any, b: Any, *, weights: Any = None) -> Array:
    """L(x) = 0.5 ||softmax(A x) - b||^2 + 0.5 ||diag(weights) A x||^2.

    Args:
      A: [n, d], one row per position.
      x: [d].
      b: [n], the target; usually in the simplex, any real vector is allowed.
      weights: [n], the regulariser, or None for none.
    Returns:
      A scalar in the dtype of the inputs.
    Raises:
      ValueError: shapes disagree, or an argument that is not traced holds NaN or infinity.
    """
    return _loss(*prepare("loss", A, x, b, weights))


@jax.jit
def _loss(A: Array, x: Array, b: Array, weights: Array | None) -> Array:
    logits = jnp.matmul(A, x, precision=HIGHEST)
    residual = jax.nn.softmax(logits) - b
    value = 0.5 * jnp.sum(residual**2)
    if weights is not None:
        value = value + 0.5 * jnp.sum((weights * logits) ** 2)
    return value


def gradient(A: Any, x: Any, b: Any, *, weights: Any = None) -> Array:
    """The gradient of `loss` in x, [d]: A^T (f c - <f, c> f + weights^2 A x).

    Arguments and errors are those of `loss`.
    """
    return _gradient(*prepare("gradient", A, x, b, weights))


@jax.jit
def _gradient(A: Array, x: Array, b: Array, weights: Array | None) -> Array:
    logits = jnp.matmul(A, x, precision=HIGHEST)
    f = jax.nn.softmax(logits)
    c = f - b
    in_logits = f * (c - jnp.sum(f * c))
    if weights is not None:
        in_logits = in_logits + weights**2 * logits
    return jnp.matmul(in_logits, A, precision=HIGHEST)


def _curvature(A: Array, x: Array, b: Array) -> tuple[Array, Array]:
    """f and v of the module's docstring."""
    f = jax.nn.softmax(jnp.matmul(A, x, precision=HIGHEST))
    return f, f * (2 * f - b - jnp.sum(f * (f - b)))


def hessian(A: Any, x: Any, b: Any, *, weights: Any = None) -> Array:
    """The Hessian of `loss` in x, [d, d], symmetric to the last bit.

    Arguments and errors are those of `loss`. Time O(n d^2), memory O(n d).
    """
    return _hessian(*prepare("hessian", A, x, b, weights))


@jax.jit
def _hessian(A: Array, x: Array, b: Array, weights: Array | None) -> Array:
    f, v = _curvature(A, x, b)
    # Transposed first: on a CPU this product is faster with the long axis last in both factors.
    centred = A.T - jnp.matmul(f, A, precision=HIGHEST)[:, None]
    result = jnp.matmul(centred * v[None, :], centred.T, precision=HIGHEST)
    if weights is not None:
        result = result + jnp.matmul(A.T * weights[None, :] ** 2, A, precision=HIGHEST)
    return 0.5 * (result + result.T)


def hvp(A: Any, x: Any, b: Any, v: Any, *, weights: Any = None) -> Array:
    """The Hessian of `loss` in x times v, [d], in O(n d) time and memory.

    Args:
      A, x, b, weights: as in `loss`.
      v: [d], the vector.
    """
    A, x, b, weights = prepare("hvp", A, x, b, weights)
    _check.shape("hvp", "v", v, x.shape, "one per column of A")
    _check.finite("hvp", v=v)
    return _hvp(A, x, b, jnp.asarray(v, A.dtype), weights)


@jax.jit
def _hvp(A: Array, x: Array, b: Array, v: Array, weights: Array | None) -> Array:
    f, curvature = _curvature(A, x, b)
    direction = jnp.matmul(A, v, precision=HIGHEST)
    moved = curvature * (direction - jnp.sum(f * direction))
    in_logits = moved - jnp.sum(moved) * f
    if weights is not None:
        in_logits = in_logits + weights**2 * direction
    return jnp.matmul(in_logits, A, precision=HIGHEST)
