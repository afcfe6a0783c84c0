"""What a kappa is: a convex function with its subgradient, conjugate and constraint."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


class ScalarFunction(NamedTuple):
    """A convex function phi of one real number, from which separable kappas are summed."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    conjugate: Callable[[Array], Array]  # phi* on [low, high]; never called outside
    conjugate_derivative: Callable[[Array], Array]
    low: float  # closure of the domain of phi*
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Kappa:
    """A convex function K of an array (of a pytree where `over_tree`), finite everywhere.

    Lion-K with weight decay lam minimises f(x) + K*(lam x) / lam (Chen et al. 2023,
    arXiv:2310.05898). Made by the functions of `lion_lyapunov.kappas`; all functions here may be
    jitted, vmapped and differentiated, and keep the dtype of what they are given.
    """

    name: str
    value: Callable[[Any], Array]  # K(z), a scalar; its JAX gradient is `subgradient`
    subgradient: Callable[[Any], Any]  # one element of the subdifferential, chosen by `tie_rule`
    conjugate: Callable[[Any], Array]  # K*(y), a scalar; +inf outside its domain
    project: Callable[[Any], Any]  # nearest point of the closure of the domain of K*
    conjugate_subgradient: Callable[[Any], Any]  # an element of the subdifferential of K*
    dual_norm: Callable[[Any], Array] | None  # <= 1 exactly where K* is finite (up to closure)
    is_even: bool  # K(-z) = K(z)
    is_smooth: bool  # differentiable everywhere
    is_support: bool = False  # K(t z) = t K(z) for t > 0, so that K* is 0 or +inf
    is_symmetric: bool = False  # unchanged when entries trade places
    over_tree: bool = False  # takes a whole pytree rather than one leaf
    scalar: ScalarFunction | None = None  # K is the sum of this function over the entries
    tie_rule: str = "differentiable: no ties"

    def __repr__(self) -> str:
        return f"<kappa {self.name}>"


def make_kappa(*, value: Callable, subgradient: Callable, **fields: Any) -> Kappa:
    """A Kappa whose value has `subgradient` as its derivative, at kinks and at 0 too."""
    differentiable = jax.custom_jvp(value)

    @differentiable.defjvp
    def _jvp(primals, tangents):
        (z,), (dz,) = primals, tangents
        slope = subgradient(z)
        terms = [
            jnp.sum(a * b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(dz)) if a.size
        ]
        out = value(z)
        return out, sum(terms, jnp.zeros((), out.dtype)).astype(out.dtype)

    return Kappa(value=differentiable, subgradient=subgradient, **fields)


def working(z: Array) -> Array:
    """`z` in a float of at least 32 bits: norms of bf16 arrays are not summed in bf16."""
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        return z.astype(jnp.result_type(float))
    return z if z.dtype.itemsize >= 4 else z.astype(jnp.float32)


def slack(y: Array) -> float:
    """Relative rounding error allowed at the boundary of a domain, for an array like `y`.

    A step of Lion-K ends inside the domain in exact arithmetic and a few ulp outside in floats.
    """
    return float(jnp.finfo(y.dtype).eps) * (16.0 + 2.0 * y.size**0.5)


def indicator(gauge: Array, y: Array) -> Array:
    """0 where `gauge` <= 1 up to rounding, +inf elsewhere (NaN counts as outside)."""
    return jnp.where(gauge <= 1 + slack(y), 0.0, jnp.inf).astype(gauge.dtype)


def max_or_nan(x: Array) -> Array:
    """The largest entry of x >= 0, 0 of none, NaN where one is NaN.

    From 4,096 entries on, the maximum that XLA computes on a CPU passes over NaN.
    """
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, jnp.max(x, initial=0.0))


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0, with finite derivatives."""
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


def euclidean(z: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """The l2 norm, without overflow or underflow, with derivative 0 at 0."""
    size = jnp.max(jnp.abs(z), axis=axis, keepdims=True, initial=0.0)
    usable = (size > 0) & jnp.isfinite(size)
    scale = jax.lax.stop_gradient(jnp.where(usable, size, 1.0))
    squares = jnp.sum((z / scale) ** 2, axis=axis, keepdims=True)
    positive = squares != 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0) * scale
    return root if keepdims else jnp.squeeze(root, axis=axis)


def normalize(z: Array, axis: int | None = None) -> Array:
    """z over its l2 norm (over those along `axis`), 0 where that is 0: `euclidean` in one pass.

    A second look only where the sum of squares leaves the dtype's range. The barrier has XLA store
    |z|, which is needed for the sum alone: memory that is held longer costs more.
    """
    size = jax.lax.optimization_barrier(jnp.abs(z))
    squares, info = jnp.sum(size * size, axis=axis, keepdims=True), jnp.finfo(z.dtype)
    inside = (squares > info.tiny / info.eps**2) & (squares < info.max)
    inverse = jax.lax.cond(
        jnp.all(inside),
        lambda _: 1.0 / jnp.sqrt(jnp.where(inside, squares, 1.0)),
        lambda size: safe_divide(1.0, euclidean(size, axis=axis, keepdims=True)),
        size,
    )
    return _scale(z, inverse)


@jax.custom_jvp
def _scale(z: Array, factor: Array) -> Array:
    """z * factor, in a form for which XLA computes z a second time rather than keep it."""
    return jnp.sign(z) * (jnp.abs(z) * factor)


@_scale.defjvp
def _scale_jvp(primals, tangents):
    (z, factor), (dz, dfactor) = primals, tangents
    return _scale(z, factor), dz * factor + z * dfactor


def keep_dtype(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Runs `function` in at least float32 and hands back the dtype that came in."""

    def run(z):
        z = jnp.asarray(z)
        wide = working(z)
        out = function(wide)
        return out.astype(z.dtype) if z.dtype != wide.dtype and _is_float(z) else out

    return run


def _is_float(z: Array) -> bool:
    return jnp.issubdtype(z.dtype, jnp.floating)
