"""Piecewise linear functions and powers of them: ReLU and its family, sign, rectified monomials."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk._kernel import Gap
from ntk.stax._activation import Activation, Dual
from ntk.stax._angle import folded, root_of, safe_inverse, size_gap
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Network

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ABReluLayer(Activation):
    """Description of `ABRelu`: a x below zero, b x above.

    With h = (a^2 + b^2) / 2, g = (a - b)^2 / (2 pi), s = sign(K), and sigma = h for K >= 0,
    -a b for K < 0: E[f f] = sigma |K| + g T and E[f' f'] = s (sigma - g phi). At equal and
    opposite inputs phi = T = 0, so both are exact there, and nothing is close to cancelling.
    """

    a: Any
    b: Any

    def fn(self, x: Array) -> Array:
        """The function."""
        # XLA's maximum followed by a mean passes over NaN on a CPU.
        kinked = self.a * jnp.minimum(x, 0) + self.b * jnp.maximum(x, 0)
        return jnp.where(jnp.isnan(x), x, kinked)

    def variance(self, var: Array) -> Array:
        """(a^2 + b^2) / 2 of the variance."""
        return var * ((self.a**2 + self.b**2) / 2)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """See the class."""
        a, b = self.a, self.b
        phi, rest = folded(cross, var1, var2, q)
        positive = cross >= 0
        h, g = (a * a + b * b) / 2, (a - b) ** 2 / (2 * math.pi)
        sigma = jnp.where(positive, jnp.asarray(h, cross.dtype), jnp.asarray(-a * b, cross.dtype))
        size = jnp.where(positive, cross, -cross)
        bend = g * rest
        slope = sigma - g * phi
        nngp = sigma * size + bend
        slope = jnp.where(positive, slope, -slope)
        if self._never_opposite:
            # h norm - (sigma |K| + g T), with norm - |K| from q; h - sigma is 0 or (a + b)^2 / 2.
            gap = h * size_gap(cross, var1, var2, q) - bend
            gap = gap + jnp.where(positive, jnp.zeros((), size.dtype), (a + b) ** 2 / 2 * size)
            return Dual(nngp, slope, Gap(jnp.maximum(gap, 0)))
        # h^2 v1 v2 - (sigma |K| + g T)^2, expanded so that only small terms remain at q = 0;
        # h^2 - sigma^2 is 0 for K >= 0 and ((a^2 - b^2) / 2)^2 for K < 0.
        opposite = ((a * a - b * b) / 2) ** 2
        apart = jnp.where(positive, 0.0, opposite) * (var1 * var2)
        residual = apart + sigma**2 * q - bend * (2 * sigma * size + bend)
        return Dual(nngp, slope, jnp.maximum(residual, 0).astype(cross.dtype))

    @property
    def _never_opposite(self) -> bool:
        """Whether norm + E[f f] >= (a - b)^2 / 2 norm is far from 0, so that a Gap tells all."""
        a, b = self.a, self.b
        known = all(isinstance(v, (int, float)) for v in (a, b))
        return known and (a - b) ** 2 > 0.2 * (a * a + b * b)


def ABRelu(a: Any, b: Any, do_stabilize: bool = False) -> Network:
    """a min(x, 0) + b max(x, 0).

    Args:
      a: slope below zero.
      b: slope above zero.
      do_stabilize: accepted for neural-tangents; the kernel is always computed stably.
    """
    del do_stabilize
    return as_network(ABReluLayer(a, b))


def Relu(do_stabilize: bool = False) -> Network:
    """max(x, 0); see `ABRelu` for the argument."""
    return ABRelu(0.0, 1.0, do_stabilize)


def LeakyRelu(alpha: Any, do_stabilize: bool = False) -> Network:
    """x above zero, `alpha` x below; see `ABRelu`."""
    return ABRelu(alpha, 1.0, do_stabilize)


def Abs(do_stabilize: bool = False) -> Network:
    """|x|; see `ABRelu` for the argument."""
    return ABRelu(-1.0, 1.0, do_stabilize)


@dataclasses.dataclass(frozen=True)
class SignLayer(Activation):
    """Description of `Sign`."""

    def fn(self, x: Array) -> Array:
        """The sign."""
        return jnp.sign(x)

    def variance(self, var: Array) -> Array:
        """1, also for a zero variance: the limit of small inputs."""
        return jnp.ones_like(var)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """1 - 2 theta / pi; the derivative is 0 almost everywhere."""
        phi, _ = folded(cross, var1, var2, q)
        half = 1 - phi * (2 / math.pi)
        nngp = jnp.where(cross >= 0, half, -half)
        return Dual(nngp, jnp.zeros_like(nngp))


def Sign() -> Network:
    """The sign of x. Its tangent kernel is 0: the derivative vanishes almost everywhere."""
    return as_network(SignLayer())


def arc_cosine_polynomials(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """p and q in cos(theta) with J_n = sin(theta) p + (pi - theta) q (Cho and Saul 2009, Eq. 4).

    From J_n = (-1)^n sin^(2n+1) (1/sin d/dtheta)^n ((pi - theta) / sin), by the recursions
    p' = c p - (1 - c^2) dp/dc - q - (2k+1) c p and q' = -(1 - c^2) dq/dc - (2k+1) c q.
    """
    Poly = np.polynomial.Polynomial
    p, q, c = Poly([0.0]), Poly([1.0]), Poly([0.0, 1.0])
    for k in range(degree):
        odd = 2 * k + 1
        p, q = (
            c * p - (1 - c * c) * p.deriv() - q - odd * c * p,
            -(1 - c * c) * q.deriv() - odd * c * q,
        )
    sign = (-1) ** degree
    return sign * p.coef, sign * q.coef


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def arc_cosine(degree: int, cross: Array, var1: Array, var2: Array, q: Array) -> Array:
    """E[u^n v^n; u > 0, v > 0] for Gaussian u and v."""
    phi, _ = folded(cross, var1, var2, q)
    beyond = jnp.where(cross >= 0, math.pi - phi, phi)  # pi - theta
    if degree == 0:
        return beyond / (2 * math.pi)
    norm = jnp.sqrt(var1) * jnp.sqrt(var2)
    cosine = cross * safe_inverse(norm)
    p, r = arc_cosine_polynomials(degree)
    sine = jnp.sqrt(q) * safe_inverse(norm)
    out = (sine * _horner(p, cosine) + beyond * _horner(r, cosine)) * norm**degree
    # Near opposite inputs the value vanishes like (pi - theta)^(2n+1) and only rounding is left.
    return jnp.maximum(out, 0) / (2 * math.pi)


def _horner(coefficients: np.ndarray, x: Array) -> Array:
    out = jnp.zeros_like(x)
    for coefficient in coefficients[::-1]:
        out = out * x + jnp.asarray(coefficient, x.dtype)
    return out


@arc_cosine.defjvp
def _arc_cosine_jvp(degree, primals, tangents):
    cross, var1, var2, q = primals
    dcross, dvar1, dvar2, _ = tangents
    value = arc_cosine(degree, cross, var1, var2, q)
    relative = dvar1 * safe_inverse(var1) + dvar2 * safe_inverse(var2)
    if degree == 0:
        root = root_of(cross, var1, var2, q)
        dtheta = (cross * relative / 2 - dcross) * safe_inverse(root)
        return value, jnp.broadcast_to(-dtheta / (2 * math.pi), value.shape)
    slope = degree**2 * arc_cosine(degree - 1, cross, var1, var2, q)
    # The average is homogeneous of degree n in each variable.
    along = (degree * value - cross * slope) * relative / 2
    return value, jnp.broadcast_to(slope * dcross + along, value.shape)


@dataclasses.dataclass(frozen=True)
class RectifiedMonomialLayer(Activation):
    """Description of `RectifiedMonomial`."""

    degree: int

    def fn(self, x: Array) -> Array:
        """The function."""
        return jnp.where(jnp.isnan(x), x, jnp.where(x >= 0, x**self.degree, 0))

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """The arc-cosine kernel of order `degree`, and n^2 times that of order n - 1."""
        nngp = arc_cosine(self.degree, cross, var1, var2, q)
        if self.degree == 0:
            return Dual(nngp, jnp.zeros_like(nngp))
        slope = self.degree**2 * arc_cosine(self.degree - 1, cross, var1, var2, q)
        return Dual(nngp, slope)


def RectifiedMonomial(degree: int) -> Network:
    """x^degree where x >= 0, and 0 elsewhere.

    Args:
      degree: 0 (the step function), 1 (ReLU), 2, ...
    """
    if int(degree) != degree or degree < 0:
        raise ValueError(f"RectifiedMonomial: degree must be an integer >= 0, got {degree}.")
    if degree == 1:
        return Relu()
    return as_network(RectifiedMonomialLayer(int(degree)))
