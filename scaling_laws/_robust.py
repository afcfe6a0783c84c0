"""Loss functions of a residual: value, slope over residual, and curvature."""

from typing import NamedTuple

import jax.numpy as jnp

KINDS = ("huber", "lsq", "lad", "student_t")
DEGREES_OF_FREEDOM = 4.0  # of student_t: heavy tails with a finite variance


class Robust(NamedTuple):
    """A loss of residuals; `delta` is the scale at which it leaves the square.

    kind: "lsq" r^2 / 2; "huber" r^2 / 2 below delta and delta (|r| - delta / 2) above; "lad" |r|;
    "student_t" the negative log likelihood of 4 degrees of freedom and scale delta, up to a
    constant, times delta^2 so that it is r^2 / 2 times 5 / 4 near 0.
    """

    kind: str
    delta: float


def value(kind, delta, residual):
    """The loss of each residual."""
    size = jnp.abs(residual)
    if kind == "lsq":
        return 0.5 * residual**2
    if kind == "huber":
        return jnp.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))
    if kind == "lad":
        return size
    return (
        0.5
        * (DEGREES_OF_FREEDOM + 1)
        * delta**2
        * jnp.log1p(residual**2 / (DEGREES_OF_FREEDOM * delta**2))
    )


def weights(kind, delta, residual):
    """(slope / residual, curvature): the weights of reweighted least squares and of Newton.

    The first majorises the loss at the residual, so a step with it descends however far it is;
    the second is exact near the solution. `kind` "lad" has no curvature and is fitted as "huber"
    with a delta that shrinks.
    """
    if kind == "lsq":
        one = jnp.ones_like(residual)
        return one, one
    if kind == "huber":
        size = jnp.abs(residual)
        inside = size <= delta
        return jnp.where(inside, 1.0, delta / jnp.where(inside, delta, size)), inside * 1.0
    if kind == "student_t":
        spread = DEGREES_OF_FREEDOM + (residual / delta) ** 2
        slope = (DEGREES_OF_FREEDOM + 1) / spread
        curvature = slope * (1 - 2 * (residual / delta) ** 2 / spread)
        return slope, jnp.maximum(curvature, 0.0)
    raise ValueError(f"weights: {kind!r} is not a smooth loss.")
