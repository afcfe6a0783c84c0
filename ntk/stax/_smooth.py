"""Smooth functions with kernels in closed form: erf, GELU, sines, exponentials.

Letters: K = E[u v], v1, v2 the variances, q = v1 v2 - K^2 without cancellation.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ntk.stax._activation import Activation, Dual
from ntk.stax._angle import atan_in_unit, live
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Network

Array = jax.Array


def arcsine(cross: Array, var1: Array, var2: Array, q: Array, scale: Any) -> tuple[Array, Array]:
    """asin(s K / sqrt((1 + s v1)(1 + s v2))), and sqrt of (1 + s v1)(1 + s v2) - s^2 K^2.

    The difference is 1 + s v1 + s v2 + s^2 q: it stays right where the weights are large.
    """
    root = jnp.sqrt(1 + scale * (var1 + var2) + scale**2 * live(cross, var1, var2, q))
    norm = jnp.sqrt(1 + scale * var1) * jnp.sqrt(1 + scale * var2)
    return 2 * atan_in_unit(scale * cross / (norm + root)), root


@dataclasses.dataclass(frozen=True)
class ErfLayer(Activation):
    """Description of `Erf`."""

    a: Any
    b: Any
    c: Any

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.a * jax.scipy.special.erf(self.b * x) + self.c

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """The arcsine kernel (Williams 1997)."""
        scale = 2 * self.b**2
        angle, root = arcsine(cross, var1, var2, q, scale)
        factor = self.a**2 * (2 / math.pi)
        return Dual(factor * angle + self.c**2, factor * scale / root)


def Erf(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Network:
    """a erf(b x) + c."""
    return as_network(ErfLayer(a, b, c))


def Sigmoid_like() -> Network:
    """erf(x / 2.4020563531719796) / 2 + 1 / 2, close to the sigmoid on [-5, 5]."""
    return Erf(0.5, 1 / 2.4020563531719796, 0.5)


@dataclasses.dataclass(frozen=True)
class GeluLayer(Activation):
    """Description of `Gelu`.

    By Gaussian integration by parts, with D = 1 + v1 + v2 + q and P = 1 / (2 pi sqrt(D)):
    E[f f] = K (1/4 + asin / (2 pi)) + P (q + K^2 (1/(1+v1) + 1/(1+v2))),
    E[f' f'] = 1/4 + asin / (2 pi) + P K (1/(1+v1) + 1/(1+v2) + 1/D).
    """

    approximate: bool

    def fn(self, x: Array) -> Array:
        """x times the normal distribution function."""
        return jax.nn.gelu(x, approximate=self.approximate)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """See the class."""
        angle, root = arcsine(cross, var1, var2, q, 1.0)
        both = 0.25 + angle / (2 * math.pi)
        density = 1 / (2 * math.pi * root)
        shares = 1 / (1 + var1) + 1 / (1 + var2)
        return Dual(
            cross * both + density * (live(cross, var1, var2, q) + cross * cross * shares),
            both + density * cross * (shares + 1 / (root * root)),
        )


def Gelu(approximate: bool = False) -> Network:
    """x Phi(x), with Phi the normal distribution function.

    Args:
      approximate: the finite layer uses tanh, as in jax.nn.gelu; the kernel is always the exact
        one.
    """
    return as_network(GeluLayer(approximate))


@dataclasses.dataclass(frozen=True)
class SinLayer(Activation):
    """Description of `Sin`."""

    a: Any
    b: Any
    c: Any

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.a * jnp.sin(self.b * x + self.c)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Half the averages of cos(b (u - v)) and cos(b (u + v) + 2c)."""
        square = self.b**2
        half = square * (var1 + var2) / 2
        minus = jnp.exp(square * cross - half)
        plus = jnp.exp(-square * cross - half) * jnp.cos(2 * jnp.asarray(self.c, cross.dtype))
        factor = self.a**2 / 2
        return Dual(factor * (minus - plus), factor * square * (minus + plus))


def Sin(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Network:
    """a sin(b x + c)."""
    return as_network(SinLayer(a, b, c))


def Cos(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Network:
    """a cos(b x + c)."""
    return Sin(a, b, c + math.pi / 2)


def Rbf(gamma: Any = 1.0) -> Network:
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4), whose kernel is exp(-gamma (v1 + v2 - 2 K))."""
    return Sin(math.sqrt(2), (2 * gamma) ** 0.5, math.pi / 4)


@dataclasses.dataclass(frozen=True)
class ExpLayer(Activation):
    """Description of `Exp`."""

    a: Any
    b: Any

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.a * jnp.exp(self.b * x)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """The moment-generating function of u + v."""
        del q
        nngp = self.a**2 * jnp.exp(self.b**2 * ((var1 + var2) / 2 + cross))
        return Dual(nngp, self.b**2 * nngp)


def Exp(a: Any = 1.0, b: Any = 1.0) -> Network:
    """a exp(b x)."""
    return as_network(ExpLayer(a, b))


@dataclasses.dataclass(frozen=True)
class GaussianLayer(Activation):
    """Description of `Gaussian`."""

    a: Any
    b: Any

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.a * jnp.exp(self.b * x**2)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """a^2 det(1 - 2 b Sigma)^(-1/2)."""
        b = self.b
        det = 1 - 2 * b * (var1 + var2) + 4 * b**2 * live(cross, var1, var2, q)
        nngp = self.a**2 / jnp.sqrt(det)
        return Dual(nngp, 4 * b**2 * cross * nngp / det)


def Gaussian(a: Any = 1.0, b: Any = -1.0) -> Network:
    """a exp(b x^2). For b > 0 the average exists only for variances below 1 / (4 b)."""
    return as_network(GaussianLayer(a, b))


@dataclasses.dataclass(frozen=True)
class GaborLayer(Activation):
    """Description of `Gabor`."""

    def fn(self, x: Array) -> Array:
        """The function."""
        return jnp.exp(-(x**2)) * jnp.sin(x)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Averages of sines under the Gaussian that exp(-u^2 - v^2) tilts."""

        def nngp(cross):
            r = live(cross, var1, var2, q)
            det = 1 + 2 * (var1 + var2) + 4 * r
            spread = (var1 + var2 + 4 * r) / 2
            minus = jnp.exp((cross - spread) / det)
            plus = jnp.exp((-cross - spread) / det)
            return (minus - plus) / (2 * jnp.sqrt(det))

        value, slope = jax.jvp(nngp, (cross,), (jnp.ones_like(cross),))
        return Dual(value, slope)


def Gabor() -> Network:
    """exp(-x^2) sin(x)."""
    return as_network(GaborLayer())


@dataclasses.dataclass(frozen=True)
class ExpNormalizedLayer(Activation):
    """Description of `ExpNormalized`."""

    gamma: Any
    shift: Any
    do_clip: bool

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """sqrt(v1 v2) exp(gamma (cosine + shift))."""
        del q
        norm = jnp.sqrt(jnp.where(var1 > 0, var1, 1)) * jnp.sqrt(jnp.where(var2 > 0, var2, 1))
        alive = (var1 > 0) & (var2 > 0)
        cosine = cross / norm
        if self.do_clip:
            cosine = jnp.clip(cosine, -1, 1)
        value = jnp.exp(self.gamma * (cosine + self.shift))
        return Dual(jnp.where(alive, norm * value, 0), self.gamma * value)

    def variance(self, var: Array) -> Array:
        """The variance times exp(gamma (1 + shift))."""
        return var * jnp.exp(jnp.asarray(self.gamma * (1 + self.shift), var.dtype))


def ExpNormalized(gamma: Any = 1.0, shift: Any = -1.0, do_clip: bool = False) -> Network:
    """The normalized Gaussian kernel of arXiv:2003.02237; it has no finite-width function.

    Args:
      gamma: factor in the exponent.
      shift: added to the cosine in the exponent.
      do_clip: whether cosines are clipped to [-1, 1].
    """
    return as_network(ExpNormalizedLayer(gamma, shift, do_clip))
