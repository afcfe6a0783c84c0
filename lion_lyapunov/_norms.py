"""Norms of vectors whose constraint is a ball: l_p, l2, l_inf and sums of l2 norms over groups."""

import math

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_count, check_number
from lion_lyapunov._kappa import (
    Array,
    Kappa,
    euclidean,
    indicator,
    keep_dtype,
    make_kappa,
    max_or_nan,
    normalize,
    safe_divide,
)
from lion_lyapunov._separable import l1
from lion_lyapunov._signed_power import signed_power
from lion_lyapunov._top_k import top_k


def norm_kappa(name: str, *, norm, subgradient, dual_norm, project, tie_rule, **fields) -> Kappa:
    """A norm; its conjugate is the indicator of the unit ball of the dual norm."""
    dual = keep_dtype(dual_norm)

    def conjugate(y):
        return indicator(dual_norm(y), y)

    return make_kappa(
        name=name,
        value=keep_dtype(norm),
        subgradient=keep_dtype(subgradient),
        conjugate=keep_dtype(conjugate),
        project=keep_dtype(project),
        conjugate_subgradient=jnp.zeros_like,
        dual_norm=dual,
        is_even=True,
        is_smooth=False,
        is_support=True,
        tie_rule=tie_rule,
        **fields,
    )


def l2(name: str = "l2") -> Kappa:
    """The l2 norm of all entries: normalised momentum inside a Euclidean ball."""

    def project(y):
        return y / jnp.maximum(euclidean(y), 1.0)

    return norm_kappa(
        name,
        norm=euclidean,
        subgradient=normalize,
        dual_norm=euclidean,
        project=project,
        is_symmetric=True,
        tie_rule="the zero array gets zero",
    )


def frobenius() -> Kappa:
    """The Frobenius norm of a matrix: `l2` under its matrix name."""
    return l2("frobenius")


def linf() -> Kappa:
    """The largest absolute entry: Frank-Wolfe steps in the l1 ball |x|_1 <= 1 / weight_decay."""
    return top_k(1, name="linf")


def lp(p: Number) -> Kappa:
    """The l_p norm: minimises f over the l_q ball of radius 1 / weight_decay, 1/p + 1/q = 1.

    Args:
      p: a Python number in [1, 1e4], or inf; 1 gives `l1`, 2 `l2`, inf `linf`. Float32 directions
        have a relative error of about 4e-7 p.
    """
    if not isinstance(p, int | float) or isinstance(p, bool):
        check_number("lp", p=p)
        raise TypeError(f"lp: p must be a Python number, because it decides formulas; got {p!r}.")
    if not p >= 1:
        raise ValueError(f"lp: p must be in [1, inf], got {p!r}.")
    if p == 1:
        return l1()
    if p == 2:
        return l2()
    if math.isinf(p):
        return linf()
    if p > 1e4:
        raise ValueError(
            f"lp: p must be at most 1e4, or inf, got {p!r}: powers of rounded entries would decide "
            "the direction. Use linf()."
        )
    q = p / (p - 1.0)

    return norm_kappa(
        f"lp({p:g})",
        norm=lambda z: _lp_norm(z, p),
        subgradient=lambda z: _direction(z, p),
        dual_norm=lambda y: _lp_norm(y, q),
        project=lambda y: _project_lq_ball(y, q),
        is_symmetric=True,
        tie_rule="an entry that is 0 gets 0",
    )


def group_l2(size: int) -> Kappa:
    """Sum of the l2 norms of consecutive groups: each group stays in its own Euclidean ball.

    Args:
      size: entries per group, counted through the flattened array; a shorter group may be last.
    """
    check_count("group_l2", size=size)

    def split(z):
        flat = z.reshape(-1)
        return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)

    def join(groups, like):
        return groups.reshape(-1)[: like.size].reshape(like.shape)

    def norms(z):
        return euclidean(split(z), axis=1, keepdims=True)

    return norm_kappa(
        f"group_l2({size})",
        norm=lambda z: jnp.sum(norms(z)),
        subgradient=lambda z: join(safe_divide(split(z), norms(z)), z),
        dual_norm=lambda y: max_or_nan(norms(y)),
        project=lambda y: join(split(y) / jnp.maximum(norms(y), 1.0), y),
        tie_rule="a group that is zero gets zero",
    )


def _direction(z: Array, p: float) -> Array:
    """sign(z) (|z| / |z|_p)^(p - 1), to a relative error of about 3e-7 k in float32.

    |z|_p^p is the sum of h^k, h = |z|^(p / k), with a power of two k. h stays in the dtype's range
    where the sum leaves it, and is summed again over its largest entry then. The barrier lets XLA
    write h where the result goes later; |z| is raised to a power twice because an array that lives
    longer costs more.
    """
    k = 2 ** math.ceil(math.log2(p))
    h = jax.lax.optimization_barrier(_power(z, p / k))
    total, info = jnp.sum(h**k), jnp.finfo(z.dtype)
    whole = int(p - 1.0)
    rest = p - 1.0 - whole  # a power in [0, 1) needs no scale: its result is in range

    def factor(total):
        return 1.0 / _power(jnp.where(total == 0, 1.0, total), (p - 1.0) / p)

    def rescale(h):
        top = jnp.max(jnp.abs(h), initial=0.0)
        top = jnp.where(top == 0, 1.0, top)
        largest = _power(top, k / p)
        return 1.0 / largest, factor(jnp.sum((h / top) ** k)) / _power(largest, rest)

    inside = (total > info.tiny / info.eps**2) & (total < info.max)
    scale, shared = jax.lax.cond(
        inside,
        lambda _: (jnp.ones_like(total), factor(jnp.where(inside, total, 1.0))),
        rescale,
        h,
    )
    return _power(z, rest) * (jnp.abs(z) * scale) ** whole * shared


def _power(z: Array, exponent: float) -> Array:
    """sign(z) |z|^exponent, with derivative 0 at 0, where autodiff would make NaN of inf * 0."""
    zero = z == 0
    size = jnp.where(zero, 1.0, jnp.abs(z))
    whole = int(exponent)
    rest = exponent - whole
    if rest in (0.0, 0.5):
        power = jax.lax.integer_pow(size, whole) * (jnp.sqrt(size) if rest else 1.0)
    else:
        return signed_power(z, rest) * jax.lax.integer_pow(jnp.abs(z), whole)
    return jnp.where(zero, 0.0, jnp.sign(z) * power)


def _lp_norm(z: Array, p: float) -> Array:
    size = jnp.abs(z)
    largest = jnp.max(size, initial=0.0)
    usable = (largest > 0) & jnp.isfinite(largest)
    scale = jax.lax.stop_gradient(jnp.where(usable, largest, 1.0))
    total = jnp.sum(_power(size / scale, p))
    return jnp.where(total == 0, 0.0, jnp.where(total == 0, 1.0, total) ** (1.0 / p)) * scale


def _project_lq_ball(y: Array, q: float) -> Array:
    """Nearest point of the l_q unit ball, 1 < q < inf.

    The nearest point x solves x_i + mu q x_i^(q-1) = |y_i| for the multiplier mu at which
    |x|_q = 1; mu lies in [0, |y|_p / q] and is bisected to the last bit.
    """
    p = q / (q - 1.0)
    size = jnp.abs(y)
    digits = 24 if y.dtype == jnp.float32 else 53

    def shrink(mu):
        return _solve_power(size, mu * q, q - 1.0)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        outside = _lp_norm(shrink(middle), q) > 1.0
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    high = _lp_norm(y, p) / q
    _, mu = jax.lax.fori_loop(0, digits + 10, halve, (jnp.zeros_like(high), high))
    inside = jnp.sign(y) * shrink(mu)
    return jnp.where(_lp_norm(y, q) <= 1.0, y, inside / jnp.maximum(_lp_norm(inside, q), 1.0))


def _solve_power(a: Array, c: Array, r: float) -> Array:
    """Solves x + c x^r = a for x >= 0, entry by entry; a >= 0, c >= 0, r > 0.

    Newton's method from above on a convex function never leaves the safe side: on x where r >= 1,
    on t = x^r where r < 1.
    """
    positive = (a > 0) & (c > 0)
    a_safe = jnp.where(positive, a, 1.0)
    c_safe = jnp.where(positive, c, 1.0) * jnp.ones_like(a)
    if r >= 1:
        linear, coefficient, exponent = 1.0, c_safe, r
        start = jnp.minimum(a_safe, (a_safe / c_safe) ** (1.0 / r))
    else:
        linear, coefficient, exponent = c_safe, 1.0, 1.0 / r
        start = jnp.minimum(a_safe**r, a_safe / c_safe)

    def newton(_, t):
        value = linear * t + coefficient * t**exponent - a_safe
        slope = linear + coefficient * exponent * t ** (exponent - 1.0)
        return t - value / slope

    t = jax.lax.fori_loop(0, 12, newton, start)
    x = t if r >= 1 else t**exponent
    return jnp.where(positive, x, a)
