"""A step of the weights, or of the document, seen as a shift of the target.

"The Closeness of In-Context Learning and Weight Shifting for Softmax Regression" (Li et al.,
arXiv:2304.13276) moves x (one gradient step) or A (one self-attention update) and asks for the
target b~ that would leave the residual as it was: softmax(A' x') - b = softmax(A x) - b~. Such a b~
always exists; the theorem is that it is close to b. Two constants stand side by side here:

- published: ||b~ - b|| <= M ||dx|| with M = exp(O(R^2 + log n)), through the chain of Lipschitz
  constants of exp, of its sum and of its inverse. Assumes R >= 4 and small steps.
- sharp (proved): the derivative of softmax has norm at most 1/2, because h^T P h is the variance of
  h under f, at most (max h - min h)^2 / 4 <= ||h||^2 / 2. Hence ||b~ - b|| <= 0.5 ||A dx||, with no
  assumption, and two equal logits moved apart show that 1/2 cannot be improved.

Both bound each shift from above. Neither says that the two shifts are close to each other:
`closeness` bounds that difference, which is what the comparison of in-context learning with a
gradient step is about.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
LIPSCHITZ = 0.5  # sup ||diag(f) - f f^T||, proved
REMAINDER = 1 / math.sqrt(54)  # sup of half the second derivative of softmax; numerical for n > 2
DIAMETER = math.sqrt(2.0)  # of the simplex
PUBLISHED_RADIUS = 4.0  # the theorem asks for R >= 4
PUBLISHED_STEP = 0.01  # and for logit moves below this


class Certificate(NamedTuple):
    """The measured shift beside its sharp bound."""

    ratio: Array  # [...] norm / sharp_bound; 0 where nothing moves
    holds: Array  # [...] bool, up to rounding
    published_assumptions: Array  # [...] bool: the step is small enough for the published theorem


class Shift(NamedTuple):
    """The shifted target and how far it went; leading axes are those of the batch."""

    target: Array  # [..., n], b~
    norm: Array  # [...], ||b~ - b||_2
    sharp_bound: Array  # [...]
    published_bound: Array  # [...], infinite where it overflows the dtype
    log_published_bound: Array  # [...], its natural logarithm, always finite for a real move
    first_order: Array  # [..., n], the linear prediction of b~ - b
    remainder_bound: Array  # [...], on ||b~ - b - first_order||_2
    certificate: Certificate


class Closeness(NamedTuple):
    """How far the targets shifted by x and by A are apart."""

    distance: Array  # [...], ||b~ - b^||_2
    bound: Array  # [...], 0.5 times the spread of A dx - dA x around its mean
    holds: Array  # [...] bool, up to rounding


def shift_x(A: Any, x: Any, dx: Any, b: Any) -> Shift:
    """The target shift that equals moving x to x + dx.

    Args:
      A: [..., n, d]; x, dx: [..., d]; b: [..., n]. Leading axes are a batch, and one that is
        missing is shared by the whole batch.
    Returns:
      A Shift with `sharp_bound` = min(0.5 ||A|| ||dx||, 0.5 ||A dx||, sqrt 2).
    Raises:
      ValueError: shapes do not fit, or an argument that is not traced holds NaN or infinity.
    """
    A, x, dx, b = _batched("shift_x", A, x, b, dx=(dx, "d"))
    return _shift_x(A, x, dx, b)


def shift_a(A: Any, x: Any, dA: Any, b: Any) -> Shift:
    """The target shift that equals moving the document A to A + dA.

    Args:
      A, dA: [..., n, d]; x: [..., d]; b: [..., n]. Leading axes as in `shift_x`.
    Returns:
      A Shift with `sharp_bound` = min(0.5 ||dA|| ||x||, 0.5 ||dA x||, sqrt 2).
    Raises:
      ValueError: shapes do not fit, or an argument that is not traced holds NaN or infinity.
    """
    A, x, dA, b = _batched("shift_a", A, x, b, dA=(dA, "nd"))
    return _shift_a(A, x, dA, b)


def closeness(A: Any, x: Any, dx: Any, dA: Any) -> Closeness:
    """How close a step of x and an update of A are as target shifts: the statement in between.

    ||b~(dx) - b^(dA)|| <= 0.5 ||h - mean(h)|| with h = A dx - dA x (proved): the two shifts agree
    as far as they move the logits alike, up to a common constant.

    Args:
      A, dA: [..., n, d]; x, dx: [..., d]. Leading axes as in `shift_x`.
    """
    zeros = jnp.zeros(np.shape(A)[:-1])
    A, x, dx, _ = _batched("closeness", A, x, zeros, dx=(dx, "d"))
    _, _, dA, _ = _batched("closeness", A, x, zeros, dA=(dA, "nd"))
    return _closeness(A, x, dx, dA)


def published_constant(num_rows: int, radius: float) -> float:
    """Natural logarithm of the published Lipschitz constant of softmax(A x) in x.

    The chain ||d exp|| <= E, ||d alpha|| <= sqrt(n) E, ||d 1/alpha|| <= sqrt(n) E / beta^2 with
    E = 2 sqrt(n) R e^{R^2} and beta >= n e^{-R^2} gives 2 R n^{-1/2} (e^{2 R^2} + e^{4 R^2}).

    >>> round(published_constant(25, 1.0), 3)  # log(0.4 (e^2 + e^4))
    3.211
    """
    _check.integer("published_constant", num_rows=num_rows)
    _check.number("published_constant", low=0.0, strict=True, radius=radius)
    return float(_log_published(num_rows, jnp.asarray(radius)))


def _log_published(n: int, radius: Array) -> Array:
    square = radius**2
    return jnp.log(2 * radius) - 0.5 * math.log(n) + jnp.logaddexp(2 * square, 4 * square)


def _batched(caller: str, A: Any, x: Any, b: Any, **move: tuple[Any, str]) -> tuple[Array, ...]:
    (name, (delta, kind)) = next(iter(move.items()))
    if np.ndim(A) < 2:
        raise ValueError(f"{caller}: A must be [..., n, d], got shape {np.shape(A)}.")
    n, d = np.shape(A)[-2:]
    cores = {"A": (A, (n, d)), "x": (x, (d,)), "b": (b, (n,))}
    cores[name] = (delta, (d,) if kind == "d" else (n, d))
    leading = []
    for label, (value, core) in cores.items():
        found = np.shape(value)
        if len(found) < len(core) or found[len(found) - len(core) :] != core:
            raise ValueError(
                f"{caller}: {label} must have trailing shape {core} to fit A, got {found}."
            )
        leading.append(found[: len(found) - len(core)])
    try:
        batch = jnp.broadcast_shapes(*leading)
    except ValueError:
        shapes = dict(zip(cores, leading))
        raise ValueError(f"{caller}: leading axes must agree, got {shapes}.") from None
    _check.finite(caller, **{label: value for label, (value, _) in cores.items()})
    arrays = _check.floating(*[value for value, _ in cores.values()])
    A, x, b, delta = (
        jnp.broadcast_to(value, batch + core) for value, (_, core) in zip(arrays, cores.values())
    )
    return A, x, delta, b


def _apply(A: Array, x: Array) -> Array:
    return jnp.einsum("...nd,...d->...n", A, x, precision=HIGHEST)


def _softmax_change(z: Array, f: Array, h: Array) -> Array:
    """softmax(z + h) - softmax(z) for f = softmax(z), exact also for tiny h."""
    large = jax.nn.softmax(z + h, axis=-1) - f
    h = h - jnp.max(h, axis=-1, keepdims=True)  # <= 0, so that expm1 stays in [-1, 0]
    growth = jnp.expm1(h)
    # 1 + mean loses its digits when most mass sat where h is very negative. There the change is
    # not small, and the plain difference is exact enough.
    mean = jnp.sum(f * growth, axis=-1, keepdims=True)
    small = f * (growth - mean) / jnp.where(mean > -0.5, 1 + mean, 1.0)
    return jnp.where(mean > -0.5, small, large)


def _jacobian(f: Array, h: Array) -> Array:
    """P h = f (h - <f, h>)."""
    return f * (h - jnp.sum(f * h, axis=-1, keepdims=True))


@jax.jit
def _shift_x(A: Array, x: Array, dx: Array, b: Array) -> Shift:
    step = jnp.linalg.norm(dx, axis=-1)
    size = jnp.linalg.norm(A, ord=2, axis=(-2, -1))
    lengths = jnp.maximum(jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(x + dx, axis=-1))
    return _shift(A, x, b, _apply(A, dx), size * step, jnp.maximum(size, lengths), step)


@jax.jit
def _shift_a(A: Array, x: Array, dA: Array, b: Array) -> Shift:
    step = jnp.linalg.norm(dA, ord=2, axis=(-2, -1))
    length = jnp.linalg.norm(x, axis=-1)
    before, after = (jnp.linalg.norm(m, ord=2, axis=(-2, -1)) for m in (A, A + dA))
    radius = jnp.maximum(jnp.maximum(before, after), length)
    return _shift(A, x, b, _apply(dA, x), step * length, radius, step)


def _shift(A, x, b, h, product, radius, step) -> Shift:
    """Everything that depends on the move only through the change h of the logits."""
    logits = _apply(A, x)
    f = jax.nn.softmax(logits, axis=-1)
    change = -_softmax_change(logits, f, h)
    norm = jnp.linalg.norm(change, axis=-1)
    moved = jnp.linalg.norm(h, axis=-1)
    sharp = jnp.minimum(LIPSCHITZ * jnp.minimum(product, moved), DIAMETER)
    radius = jnp.maximum(radius, PUBLISHED_RADIUS)
    log_published = _log_published(b.shape[-1], radius) + jnp.log(step)
    # Rounding of h is relative to its terms, not to itself.
    slack = 16 * jnp.finfo(norm.dtype).eps * jnp.maximum(jnp.minimum(product, 1.0), sharp)
    return Shift(
        target=b + change,
        norm=norm,
        sharp_bound=sharp,
        published_bound=jnp.exp(log_published),
        log_published_bound=log_published,
        first_order=-_jacobian(f, h),
        remainder_bound=REMAINDER * moved**2,
        certificate=Certificate(
            ratio=jnp.where(sharp > 0, norm / jnp.where(sharp > 0, sharp, 1.0), 0.0),
            holds=norm <= sharp + slack,
            published_assumptions=jnp.max(jnp.abs(h), axis=-1) < PUBLISHED_STEP,
        ),
    )


@jax.jit
def _closeness(A: Array, x: Array, dx: Array, dA: Array) -> Closeness:
    logits = _apply(A, x)
    by_x, by_a = _apply(A, dx), _apply(dA, x)
    h = by_x - by_a
    f = jax.nn.softmax(logits + by_a, axis=-1)
    distance = jnp.linalg.norm(_softmax_change(logits + by_a, f, h), axis=-1)
    bound = LIPSCHITZ * jnp.linalg.norm(h - jnp.mean(h, axis=-1, keepdims=True), axis=-1)
    largest = jnp.maximum(jnp.linalg.norm(by_x, axis=-1), jnp.linalg.norm(by_a, axis=-1))
    slack = 16 * jnp.finfo(f.dtype).eps * jnp.minimum(largest, 1.0)
    return Closeness(distance, bound, distance <= bound + slack)
