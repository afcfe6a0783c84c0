"""Nonlinearities of the user: by their kernel, or by quadrature of the function alone."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ntk.stax._activation import Activation, Dual
from ntk.stax._angle import safe_inverse
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Network
from ntk.stax._quadrature import NODES, find_kinks, gauss_hermite_average, pair_average

Array = jax.Array
Function = Callable[..., Any]


def _everywhere(function: Function, *arrays: Array) -> Array:
    """Applies a function of numbers to arrays that broadcast against each other."""
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    flat = [jnp.broadcast_to(a, shape).reshape(-1) for a in arrays]
    return jax.vmap(function)(*flat).reshape(shape)


@dataclasses.dataclass(frozen=True)
class DualLayer(Activation):
    """Description of `Elementwise` with a kernel given by the user."""

    function: Function | None
    nngp_fn: Function
    d_nngp_fn: Function | None

    @property
    def name(self) -> str:
        """The name in messages."""
        return "Elementwise"

    def fn(self, x: Array) -> Array:
        """The user's function."""
        if self.function is None:
            raise NotImplementedError("Elementwise was given no fn, so it has no finite network.")
        return _everywhere(self.function, x)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """The user's kernel and its derivative."""
        del q
        slope = jax.grad(self.nngp_fn) if self.d_nngp_fn is None else self.d_nngp_fn
        return Dual(
            _everywhere(self.nngp_fn, cross, var1, var2), _everywhere(slope, cross, var1, var2)
        )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3, 4))
def average(
    f: Function, g: Function, kinks: tuple[float, ...], deg: int, smooth: bool,
    cross: Array, var1: Array, var2: Array, q: Array,
) -> Array:  # fmt: skip
    """E[f(u) g(v)], all arguments of one shape [n]; see `pair_average`."""
    del smooth
    s1, s2 = jnp.sqrt(var1), jnp.sqrt(var2)
    norm = s1 * s2
    total = norm + jnp.abs(cross)
    half = jnp.where(total > 0, jnp.sqrt(q) / jnp.where(total > 0, total, 1), 0)
    # tan of half the folded angle gives its cosine and sine.
    near = 1 / jnp.sqrt(1 + half * half)
    far = half * near
    c, s = jnp.where(cross >= 0, near, far), jnp.where(cross >= 0, far, near)
    one = partial(pair_average, f, g, kinks, deg=deg)
    count, size = cross.shape[0], min(16, cross.shape[0])
    # Whole batches, the last one filled with its last entry: one body to compile, not two.
    index = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    blocks = jax.lax.map(lambda i: jax.vmap(one)(s1[i], s2[i], c[i], s[i]), index)
    return blocks.reshape(-1)[:count]


@average.defjvp
def _average_jvp(f, g, kinks, deg, smooth, primals, tangents):
    cross, var1, var2, q = primals
    dcross, dvar1, dvar2, _ = tangents
    value = average(f, g, kinks, deg, smooth, cross, var1, var2, q)
    df, dg = _derivative(f), _derivative(g)
    slope = average(df, dg, kinks, deg, smooth, cross, var1, var2, q)

    # u f'(u) instead of f''(u): the latter may hold delta functions.
    def along(k):
        return lambda x: x * k(x)

    left = average(along(df), g, kinks, deg, smooth, cross, var1, var2, q)
    right = average(f, along(dg), kinks, deg, smooth, cross, var1, var2, q)
    first = (left - cross * slope) * safe_inverse(var1) / 2
    second = (right - cross * slope) * safe_inverse(var2) / 2
    return value, slope * dcross + first * dvar1 + second * dvar2


def _derivative(f: Function) -> Function:
    def derivative(x):
        return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    return derivative


@dataclasses.dataclass(frozen=True)
class QuadratureLayer(Activation):
    """Description of a nonlinearity whose kernel is computed by panels between its kinks."""

    function: Function
    kinks: tuple[float, ...]
    deg: int
    label: str

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.label

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.function(x)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Averages of f f and f' f'."""
        f, df = self.function, _derivative(self.function)
        shape = jnp.broadcast_shapes(cross.shape, var1.shape, var2.shape)
        flat = [jnp.broadcast_to(a, shape).reshape(-1) for a in (cross, var1, var2, q)]
        smooth = not self.kinks
        nngp = average(f, f, self.kinks, self.deg, smooth, *flat)
        slope = average(df, df, self.kinks, self.deg, smooth, *flat)
        return Dual(nngp.reshape(shape), slope.reshape(shape))


def Elementwise(
    fn: Function | None = None,
    nngp_fn: Function | None = None,
    d_nngp_fn: Function | None = None,
    *,
    kinks: Sequence[float] | None = None,
    deg: int = NODES,
) -> Network:
    """Any function of one number.

    With `nngp_fn` the kernel is what the user says it is. Without, it is computed from `fn` by
    Gauss-Legendre panels that end at the kinks of `fn`, to about 1e-10 for functions that vary
    over lengths of order 1.

    Args:
      fn: R -> R; None when only the kernel is wanted.
      nngp_fn: (covariance, variance 1, variance 2) -> E[fn(u) fn(v)], of numbers.
      d_nngp_fn: the same for E[fn'(u) fn'(v)]; None differentiates `nngp_fn`.
      kinks: where `fn` or a derivative of it jumps; None finds them by bisection.
      deg: Gauss-Legendre nodes of a panel of 2.4 standard deviations.
    """
    if nngp_fn is not None:
        return as_network(DualLayer(fn, nngp_fn, d_nngp_fn))
    if fn is None:
        raise ValueError("Elementwise: give fn, nngp_fn, or both.")
    return _by_quadrature(fn, kinks, deg, "Elementwise")


def _by_quadrature(fn: Function, kinks: Sequence[float] | None, deg: int, label: str) -> Network:
    if deg < 2:
        raise ValueError(f"{label}: deg must be at least 2, got {deg}.")
    if kinks is None:
        kinks = find_kinks(fn)
        if len(kinks) > 12:
            raise ValueError(
                f"{label}: fn is not smooth at {len(kinks)} points ({kinks[:4]}...); give `kinks` "
                "or `nngp_fn`."
            )
    return as_network(QuadratureLayer(fn, tuple(float(k) for k in kinks), deg, label))


@dataclasses.dataclass(frozen=True)
class GaussHermiteLayer(Activation):
    """Description of `ElementwiseNumerical`."""

    function: Function
    deg: int
    df: Function | None

    @property
    def name(self) -> str:
        """The name in messages."""
        return "ElementwiseNumerical"

    def fn(self, x: Array) -> Array:
        """The function."""
        return self.function(x)

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Averages of f f and f' f'."""
        del q
        f = self.function
        df = _derivative(f) if self.df is None else self.df
        return Dual(
            gauss_hermite_average(f, f, cross, var1, var2, self.deg),
            gauss_hermite_average(df, df, cross, var1, var2, self.deg),
        )


def ElementwiseNumerical(fn: Function, deg: int, df: Function | None = None) -> Network:
    """Any smooth function, by deg x deg Gauss-Hermite quadrature.

    `Elementwise(fn)` chooses its nodes itself and copes with kinks.

    Args:
      fn: the function.
      deg: nodes in each of the two directions; time grows as its square, memory does not.
      df: derivative of `fn`; None differentiates.
    """
    if deg < 1:
        raise ValueError(f"ElementwiseNumerical: deg must be at least 1, got {deg}.")
    return as_network(GaussHermiteLayer(fn, deg, df))


def Tanh() -> Network:
    """The hyperbolic tangent, by quadrature."""
    return _by_quadrature(jnp.tanh, (), NODES, "Tanh")


def Silu() -> Network:
    """x sigmoid(x), also called swish, by quadrature."""
    return _by_quadrature(jax.nn.silu, (), NODES, "Silu")


def Softplus() -> Network:
    """log(1 + exp(x)), by quadrature."""
    return _by_quadrature(jax.nn.softplus, (), NODES, "Softplus")


def Sigmoid() -> Network:
    """1 / (1 + exp(-x)), by quadrature; `Sigmoid_like` is close to it in closed form."""
    return _by_quadrature(jax.nn.sigmoid, (), NODES, "Sigmoid")


def Elu(alpha: float = 1.0) -> Network:
    """x above zero, alpha (exp(x) - 1) below, by quadrature."""
    if not math.isfinite(alpha):
        raise ValueError(f"Elu: alpha must be finite, got {alpha}.")
    return _by_quadrature(lambda x: jax.nn.elu(x, alpha), (0.0,), NODES, "Elu")
