"""Kappas that add up one function of each entry: Lion and its smooth and sparse relatives."""

import math

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_non_negative, check_number, check_positive
from lion_lyapunov._kappa import Array, Kappa, ScalarFunction, keep_dtype, make_kappa, max_or_nan


def separable(name: str, phi: ScalarFunction, *, is_even: bool, is_smooth: bool, **fields) -> Kappa:
    """The kappa sum_i phi(z_i); the domain of its conjugate is a box (or everything)."""
    bounded = math.isfinite(phi.low) or math.isfinite(phi.high)

    def value(z):
        return jnp.sum(phi.value(z))

    def project(y):
        return jnp.clip(y, phi.low, phi.high) if bounded else y

    def conjugate(y):
        inside = project(y)
        # A coordinate may leave the box by rounding and no more; NaN counts as outside.
        allowed = 16.0 * float(jnp.finfo(y.dtype).eps)
        outside = ~(jnp.abs(y - inside) <= allowed)
        return jnp.sum(jnp.where(outside, jnp.inf, phi.conjugate(inside)))

    def dual_norm(y):
        if not bounded:
            return jnp.zeros((), y.dtype)
        size = jnp.where(y >= 0, y / phi.high, y / phi.low if phi.low else jnp.inf * -y)
        return max_or_nan(jnp.where(y == 0, 0.0, size))

    return make_kappa(
        name=name,
        value=keep_dtype(value),
        subgradient=phi.derivative,
        conjugate=keep_dtype(conjugate),
        project=project,
        conjugate_subgradient=keep_dtype(lambda y: phi.conjugate_derivative(project(y))),
        dual_norm=keep_dtype(dual_norm),
        is_even=is_even,
        is_smooth=is_smooth,
        is_symmetric=True,
        scalar=phi,
        **fields,
    )


def l1() -> Kappa:
    """The l1 norm: Lion. Minimises f over the box |x_i| <= 1 / weight_decay.

    >>> import jax.numpy as jnp
    >>> print(l1().subgradient(jnp.array([3.0, 0.0, -2.0])))
    [ 1.  0. -1.]
    """
    phi = ScalarFunction(jnp.abs, jnp.sign, jnp.zeros_like, jnp.zeros_like, -1.0, 1.0)
    return separable(
        "l1",
        phi,
        is_even=True,
        is_smooth=False,
        is_support=True,
        tie_rule="an entry that is 0 gets 0",
    )


def trimmed_l1(e: Number) -> Kappa:
    """Sum of max(|z_i| - e, 0): minimises f(x) + e |x|_1 over the box, hence sparse weights.

    Args:
      e: half width of the dead zone, >= 0, in the units of the gradient.
    """
    check_non_negative("trimmed_l1", e=e)
    phi = ScalarFunction(
        value=lambda z: jnp.where(jnp.abs(z) <= e, 0.0, jnp.abs(z) - e),
        derivative=lambda z: jnp.where(jnp.abs(z) <= e, jnp.zeros_like(z), jnp.sign(z)),
        conjugate=lambda y: e * jnp.abs(y),
        conjugate_derivative=lambda y: e * jnp.sign(y),
        low=-1.0,
        high=1.0,
    )
    return separable(
        f"trimmed_l1({_show(e)})",
        phi,
        is_even=True,
        is_smooth=False,
        tie_rule="an entry of size e gets 0",
    )


def huber(e: Number) -> Kappa:
    """Sum of huber_e(z_i) / e, with subgradient clip(z / e, -1, 1).

    Minimises f(x) + (e weight_decay / 2) |x|^2 over the box. With e = 1 it is the `refined` mode of
    `optax.scale_by_lion`, bit for bit. Its effect depends on the scale of the gradient.

    Args:
      e: half width of the linear part, > 0, in the units of the gradient.
    """
    check_positive("huber", e=e)

    def value(z):
        size = jnp.abs(z)
        near = jnp.minimum(size, e)
        return 0.5 * near * (near / e) + (size - near)

    phi = ScalarFunction(
        value=value,
        derivative=lambda z: jnp.clip(z / e, -1.0, 1.0),
        conjugate=lambda y: 0.5 * e * y * y,
        conjugate_derivative=lambda y: e * y,
        low=-1.0,
        high=1.0,
    )
    return separable(f"huber({_show(e)})", phi, is_even=True, is_smooth=True)


def relativistic(e: Number) -> Kappa:
    """Sum of sqrt(z_i^2 + e^2) - e: the energy of a relativistic particle, a smooth Lion.

    Args:
      e: width of the rounded tip, > 0, in the units of the gradient.
    """
    check_positive("relativistic", e=e)

    def conjugate_derivative(y):
        return e * y / jnp.sqrt((1.0 - y) * (1.0 + y))

    def derivative(z):
        # Beyond 1e9 the quotient is 1 to the last bit, and its square would overflow.
        u = jnp.clip(z / e, -1e9, 1e9)
        return u / jnp.sqrt(1.0 + u * u)

    phi = ScalarFunction(
        # Written with a sum below the line: sqrt(z^2 + e^2) - e cancels for small z.
        value=lambda z: z * (z / (jnp.hypot(z, jnp.asarray(e, z.dtype)) + e)),
        derivative=keep_dtype(derivative),
        conjugate=lambda y: e * y * y / (1.0 + jnp.sqrt((1.0 - y) * (1.0 + y))),
        conjugate_derivative=conjugate_derivative,
        low=-1.0,
        high=1.0,
    )
    return separable(f"relativistic({_show(e)})", phi, is_even=True, is_smooth=True)


def log_cosh(beta: Number) -> Kappa:
    """Sum of log cosh(beta z_i) / beta: subgradient tanh(beta z), binary-entropy regulariser.

    It is the `smooth` mode of `optax.scale_by_lion`, bit for bit.

    Args:
      beta: steepness at 0, > 0, in units of 1 / gradient.
    """
    check_positive("log_cosh", beta=beta)

    def value(z):
        x = jnp.abs(beta * z)
        # log cosh x = log1p(2 sinh(x / 2)^2) loses no digits near 0; the other form never
        # overflows. Each sees a safe argument, so that derivatives stay finite.
        near = jnp.log1p(2.0 * jnp.sinh(0.5 * jnp.minimum(x, 1.0)) ** 2)
        far = x + jnp.log1p(jnp.exp(-2.0 * x)) - math.log(2.0)
        return jnp.where(x < 1.0, near, far) / beta

    def conjugate(y):
        inner = jnp.clip(y, -0.5, 0.5)
        near = inner * jnp.arctanh(inner) + 0.5 * jnp.log1p(-inner * inner)
        far = 0.5 * (_x_log_x(1.0 + y) + _x_log_x(1.0 - y))
        return jnp.where(jnp.abs(y) < 0.5, near, far) / beta

    phi = ScalarFunction(
        value=value,
        derivative=lambda z: jnp.tanh(beta * z),
        conjugate=conjugate,
        conjugate_derivative=lambda y: jnp.arctanh(y) / beta,
        low=-1.0,
        high=1.0,
    )
    return separable(f"log_cosh({_show(beta)})", phi, is_even=True, is_smooth=True)


def arctan(beta: Number) -> Kappa:
    """The kappa with subgradient (2 / pi) arctan(beta z); +inf on the boundary of its box.

    Args:
      beta: steepness at 0 times pi / 2, > 0, in units of 1 / gradient.
    """
    check_positive("arctan", beta=beta)

    def value(z):
        u = beta * z
        return (2.0 / math.pi) * (z * jnp.arctan(u) - 0.5 * _log1p_square(u) / beta)

    def conjugate(y):
        cosine = jnp.cos(0.5 * math.pi * y)
        inside = jnp.abs(y) < 1.0
        return jnp.where(
            inside, -(2.0 / (math.pi * beta)) * jnp.log(jnp.where(inside, cosine, 1.0)), jnp.inf
        )

    phi = ScalarFunction(
        value=value,
        derivative=lambda z: (2.0 / math.pi) * jnp.arctan(beta * z),
        conjugate=conjugate,
        conjugate_derivative=lambda y: jnp.tan(0.5 * math.pi * y) / beta,
        low=-1.0,
        high=1.0,
    )
    return separable(f"arctan({_show(beta)})", phi, is_even=True, is_smooth=True)


def half_squared_l2() -> Kappa:
    """Half the squared l2 norm: heavy ball or Nesterov momentum with decay (lam / 2) |x|^2."""
    phi = ScalarFunction(
        value=lambda z: 0.5 * z * z,
        derivative=lambda z: z,
        conjugate=lambda y: 0.5 * y * y,
        conjugate_derivative=lambda y: y,
        low=-math.inf,
        high=math.inf,
    )
    return separable("half_squared_l2", phi, is_even=True, is_smooth=True)


def power(p: Number) -> Kappa:
    """Sum of |z_i|^p / p: minimises f(x) + lam^(q-1) |x|_q^q / q, 1/p + 1/q = 1.

    Args:
      p: > 1 (p = 1 is `l1`).
    """
    check_number("power", p=p)
    if isinstance(p, int | float) and not 1 < p < math.inf:
        raise ValueError(f"power: p must be in (1, inf), got {p!r}; for p = 1 use l1().")
    q = p / (p - 1.0)
    phi = ScalarFunction(
        value=lambda z: jnp.abs(z) ** p / p,
        derivative=lambda z: jnp.sign(z) * jnp.abs(z) ** (p - 1.0),
        conjugate=lambda y: jnp.abs(y) ** q / q,
        conjugate_derivative=lambda y: jnp.sign(y) * jnp.abs(y) ** (q - 1.0),
        low=-math.inf,
        high=math.inf,
    )
    return separable(f"power({_show(p)})", phi, is_even=True, is_smooth=True)


def positive_part() -> Kappa:
    """Sum of max(z_i, 0): minimises f over 0 <= x_i <= 1 / weight_decay. Not even."""
    phi = ScalarFunction(
        value=lambda z: jnp.where(z <= 0, 0.0, z),
        derivative=lambda z: jnp.where(jnp.isnan(z), z, (z > 0).astype(z.dtype)),
        conjugate=jnp.zeros_like,
        conjugate_derivative=jnp.zeros_like,
        low=0.0,
        high=1.0,
    )
    return separable(
        "positive_part",
        phi,
        is_even=False,
        is_smooth=False,
        is_support=True,
        tie_rule="an entry that is 0 gets 0",
    )


def _x_log_x(x: Array) -> Array:
    return jax.scipy.special.xlogy(x, x)


def _log1p_square(u: Array) -> Array:
    """log(1 + u^2) without overflow."""
    size = jnp.abs(u)
    large = size > 1.0
    inverse = 1.0 / jnp.where(large, size, 1.0)
    small = jnp.minimum(size, 1.0)
    return jnp.where(
        large, jnp.log1p(inverse**2) - 2.0 * jnp.log(inverse), jnp.log1p(small * small)
    )


def _show(value: Number) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "traced"
