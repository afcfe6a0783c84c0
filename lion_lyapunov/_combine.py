"""Kappas from kappas: scaling, Moreau smoothing and half squares."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_positive
from lion_lyapunov._kappa import Kappa, ScalarFunction, keep_dtype, make_kappa


def scaled(kappa: Kappa, s: Number) -> Kappa:
    """s K, with conjugate s K*(y / s): the radius of the constraint becomes s / weight_decay.

    Args:
      kappa: any kappa.
      s: > 0.
    """
    check_positive("scaled", s=s)

    def times(factor, function):
        return lambda z: jax.tree.map(lambda leaf: factor * leaf, function(z))

    def shrunk(function):
        return lambda y: function(jax.tree.map(lambda leaf: leaf / s, y))

    gauge = kappa.dual_norm
    return make_kappa(
        name=f"scaled({kappa.name})",
        value=times(s, kappa.value),
        subgradient=times(s, kappa.subgradient),
        conjugate=times(s, shrunk(kappa.conjugate)),
        project=times(s, shrunk(kappa.project)),
        conjugate_subgradient=shrunk(kappa.conjugate_subgradient),
        dual_norm=None if gauge is None else shrunk(gauge),
        is_even=kappa.is_even,
        is_smooth=kappa.is_smooth,
        is_support=kappa.is_support,
        is_symmetric=kappa.is_symmetric,
        over_tree=kappa.over_tree,
        tie_rule=kappa.tie_rule,
    )


def moreau(kappa: Kappa, mu: Number) -> Kappa:
    """The Moreau envelope of K, smooth and within reach of K; its conjugate is K* + mu/2 |y|^2.

    For a norm the subgradient is the projection of z / mu on the dual ball: `l1` becomes
    `huber(mu)`, `nuclear` clips singular values.

    Args:
      kappa: a support function (all norms are) or a separable kappa; lift the smoothed kappa,
        `spectral(moreau(kappa, mu))`, for other functions of singular values.
      mu: width of the smoothing, > 0, in the units of the gradient.
    """
    check_positive("moreau", mu=mu)
    if kappa.over_tree:
        raise ValueError(f"moreau: smooth the kappa of each leaf instead of {kappa!r}.")
    if kappa.is_support:
        slopes = _projected(kappa, mu)
    elif kappa.scalar is not None and kappa.is_even:
        slopes = _bisected(kappa.scalar, mu)
    else:
        raise ValueError(
            f"moreau: kappa must be a support function or even and separable, got {kappa!r}; "
            "smooth before lifting, as in spectral(moreau(huber(0.1), 0.1))."
        )

    def value(z):
        y = slopes(z)
        return jnp.sum(z * y) - kappa.conjugate(y) - 0.5 * mu * jnp.sum(y * y)

    return make_kappa(
        name=f"moreau({kappa.name})",
        value=keep_dtype(value),
        subgradient=slopes,
        conjugate=keep_dtype(lambda y: kappa.conjugate(y) + 0.5 * mu * jnp.sum(y * y)),
        project=kappa.project,
        conjugate_subgradient=lambda y: kappa.conjugate_subgradient(y) + mu * kappa.project(y),
        dual_norm=kappa.dual_norm,
        is_even=kappa.is_even,
        is_smooth=True,
        is_symmetric=kappa.is_symmetric,
    )


def _projected(kappa: Kappa, mu: Number) -> Callable:
    return lambda z: kappa.project(z / mu)


def _bisected(phi: ScalarFunction, mu: Number) -> Callable:
    """The slope y of the envelope solves phi*'(y) + mu y = z, monotone, between 0 and z / mu."""

    def solve(z):
        goal = jnp.clip(z / mu, phi.low, phi.high)
        digits = 24 if z.dtype == jnp.float32 else 53

        def halve(_, bracket):
            near, far = bracket
            middle = 0.5 * (near + far)
            beyond = jnp.abs(phi.conjugate_derivative(middle) + mu * middle) > jnp.abs(z)
            return jnp.where(beyond, near, middle), jnp.where(beyond, middle, far)

        near, far = jax.lax.fori_loop(0, digits + 6, halve, (jnp.zeros_like(goal), goal))
        return 0.5 * (near + far)

    return keep_dtype(solve)


def half_squared(norm: Kappa) -> Kappa:
    """Half the square of a norm: f + (lam / 2) |x|_dual^2, a penalty in place of the ball.

    `half_squared(nuclear())` scales U V^T by the nuclear norm (the adaptive Muon of optax).

    Args:
      norm: a kappa that is a norm.
    """
    dual_norm = norm.dual_norm
    if not (norm.is_support and norm.is_even) or dual_norm is None or norm.over_tree:
        raise ValueError(f"half_squared: norm must be a norm of one leaf, got {norm!r}.")

    def slope(y):
        size, gradient = jax.value_and_grad(dual_norm)(y)
        return size * gradient

    return make_kappa(
        name=f"half_squared({norm.name})",
        value=lambda z: 0.5 * norm.value(z) ** 2,
        subgradient=lambda z: norm.value(z) * norm.subgradient(z),
        conjugate=lambda y: 0.5 * dual_norm(y) ** 2,
        project=lambda y: y,
        conjugate_subgradient=slope,
        dual_norm=lambda y: jnp.zeros((), y.dtype),
        is_even=True,
        is_smooth=False,
        is_symmetric=norm.is_symmetric,
        tie_rule=norm.tie_rule,
    )
