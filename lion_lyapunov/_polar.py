"""Orthogonal polar factors from matrix products alone, with certified singular values.

A step sends every singular value s of X to p(s) = a s + b s^3 + c s^5, by
X <- (a I + b A + c A^2) X with A = X X^T. A schedule is a list of (a, b, c). The image of an
interval under p is an interval whose ends are values of p at its ends or its critical points, so
where a whole schedule sends [lower, 1] is known exactly, before any matrix is seen.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lion_lyapunov._kappa import Array

Coefficients = tuple[float, float, float]

# Keller Jordan's five identical steps, the default of optax.contrib.muon. They do not converge:
# singular values end anywhere in about [0.68, 1.2].
JORDAN: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),) * 5

# 0 and 1 are fixed points with slope 0: values near 1 come nearer, rounding noise vanishes.
_SQUELCH: Coefficients = (0.0, 2.5, -1.5)


class SingularRange(NamedTuple):
    """Where a schedule sends singular values that start in [lower, 1], and in [0, 1]."""

    low: float  # least end of those that start at `lower` or above
    high: float  # greatest end of all


def certified_range(schedule: tuple[Coefficients, ...], lower: float = 0.0) -> SingularRange:
    """The exact image of [lower, 1] under the composed polynomials, and the maximum over [0, 1].

    >>> round(certified_range(JORDAN).high, 3)
    1.202
    """
    low, high, floor, top = lower, 1.0, 0.0, 1.0
    for coefficients in schedule:
        low, high = _image(coefficients, low, high)
        floor, top = _image(coefficients, floor, top)
    return SingularRange(low, max(top, -floor))


def _image(coefficients: Coefficients, low: float, high: float) -> tuple[float, float]:
    a, b, c = coefficients
    points = [low, high]
    squares = np.roots([5 * c, 3 * b, a]) if c else np.array([-a / (3 * b)] if b else [])
    for square in squares:
        if abs(square.imag) < 1e-12 and square.real > 0:
            root = math.sqrt(square.real)
            points += [x for x in (root, -root) if low < x < high]
    values = [x * (a + x * x * (b + c * x * x)) for x in points]
    return min(values), max(values)


@functools.lru_cache(maxsize=64)
def minimax_schedule(
    lower: float, *, num_steps: int | None = None, error: float = 0.0
) -> tuple[Coefficients, ...]:
    """Steps that each bring [lower, 1] as near to 1 as an odd quintic can.

    Composing the best polynomial of each interval is the best composition (Amsel et al. 2025,
    arXiv:2505.16932).

    Args:
      lower: smallest singular value, relative to the norm that X is divided by, that must reach 1.
      num_steps: number of steps; otherwise as many as `error` asks for.
      error: stop once all of [lower, 1] is within this distance of 1.
    """
    if num_steps is None and not 0 < error < 1:
        raise ValueError(f"minimax_schedule: error must be in (0, 1), got {error!r}.")
    low, high, schedule = lower, 1.0, []
    while len(schedule) < (60 if num_steps is None else num_steps):
        if num_steps is None and max(1.0 - low, high - 1.0) <= error:
            break
        schedule.append(_best_quintic(low, high))
        low, high = _image(schedule[-1], low, high)
    return tuple(schedule)


def _best_quintic(low: float, high: float) -> Coefficients:
    """The odd quintic nearest to 1 on [low, high], by Remez exchange: its error alternates."""
    # Below this the best polynomial hardly changes, and the linear system loses rank.
    low = max(low, 1e-5 * high)
    if low > high * (1 - 1e-4):
        # The exchange loses its digits here; Taylor's (third-order) polynomial is as good.
        middle = 0.5 * (low + high)
        return 15 / 8 / middle, -10 / 8 / middle**3, 3 / 8 / middle**5
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    a = b = c = 0.0
    previous = math.inf
    for _ in range(100):
        points = np.array([low, inner[0], inner[1], high])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, level = np.linalg.solve(system, np.ones(4))
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
        if abs(level - previous) <= 1e-15:
            break
        previous = level
    return float(a), float(b), float(c)


def _run(z: Array, schedule: tuple[Coefficients, ...], precision: jax.lax.PrecisionLike) -> Array:
    """Applies `schedule` to the singular values of z / |z|_4, the Schatten-4 norm."""
    multiply = functools.partial(jnp.matmul, precision=precision)
    x = z.T if z.shape[0] > z.shape[1] else z
    # Scaled by the largest entry first: the fourth powers of tiny gradients would underflow.
    largest = jnp.max(jnp.abs(x), initial=0.0)
    x = x / jnp.where(largest > 0, largest, 1.0)
    gram = multiply(x, x.T)
    # |z|_4^4 = |gram|_F^2 >= (largest singular value)^4, and far nearer to it than |z|_F is.
    norm = jnp.sqrt(jnp.sqrt(jnp.sum(gram * gram))) * (1.0 + 4 * float(jnp.finfo(z.dtype).eps))
    scale = jnp.where(norm > 0, 1.0 / jnp.where(norm > 0, norm, 1.0), 1.0)
    x, gram = x * scale, gram * (scale * scale)
    for step, (a, b, c) in enumerate(schedule):
        gram = multiply(x, x.T) if step else gram
        mixed = b * gram + c * multiply(gram, gram)
        x = multiply(mixed, x) if a == 0 else a * x + multiply(mixed, x)
    return x.T if z.shape[0] > z.shape[1] else x


def newton_schulz(
    z: Array, *, schedule: tuple[Coefficients, ...] | None = None, num_steps: int = 5
) -> Array:
    """A few steps towards the polar factor of `z`, with no singular value above 1.

    Args:
      z: [m, n].
      schedule: coefficients per step, for example `JORDAN`; the default is
        `minimax_schedule(1e-3, num_steps=num_steps)`.
      num_steps: steps of the default schedule.
    Returns:
      [m, n]: U p(s / |z|_4) V^T divided by the certified maximum of p over [0, 1].
    """
    steps = schedule if schedule is not None else minimax_schedule(1e-3, num_steps=num_steps)
    rounding = 1.0 + 64 * float(jnp.finfo(z.dtype).eps)
    top = certified_range(steps).high * rounding
    # The certified maximum is divided out of the last step, which costs nothing.
    a, b, c = steps[-1]
    return _run(z, (*steps[:-1], (a / top, b / top, c / top)), None)


def polar(z: Array, *, error: float | None = None, smallest: float | None = None) -> Array:
    """The partial isometry U V^T of z = U S V^T, from matrix products alone.

    Args:
      z: [m, n], float32 or float64.
      error: how far from 1 a resolved singular value may end; default 4 machine epsilons.
      smallest: the least resolved singular value relative to the Schatten-4 norm, which is at most
        rank^(1/4) times the largest; default 1e-10, or 64 machine epsilons in float32. Values far
        below it, such as rounding noise of a matrix of low rank, go to 0.
    Returns:
      [m, n], with all singular values in [0, 1] up to rounding; zero for the zero matrix.
    """
    eps = float(jnp.finfo(z.dtype).eps)
    least = max(64 * eps, 1e-10) if smallest is None else smallest
    steps = minimax_schedule(least, error=4 * eps if error is None else error)
    return _run(z, (*steps, _SQUELCH, _SQUELCH), jax.lax.Precision.HIGHEST)
