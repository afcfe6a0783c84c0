"""Log-sum-exp, whose conjugate is the entropy on the simplex. Not even."""

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_positive
from lion_lyapunov._kappa import Array, Kappa, keep_dtype, make_kappa, slack


def log_sum_exp(tau: Number) -> Kappa:
    """tau log sum_i exp(z_i / tau): minimises f plus entropy over weight_decay x in the simplex.

    Args:
      tau: temperature, > 0, in the units of the gradient.
    """
    check_positive("log_sum_exp", tau=tau)

    def value(z):
        return tau * jax.scipy.special.logsumexp(z / tau)

    def subgradient(z):
        return jax.nn.softmax((z / tau).reshape(-1)).reshape(z.shape)

    def conjugate(y):
        inside = jnp.maximum(y, 0.0)
        allowed = slack(y)
        outside = ~(jnp.all(y >= -allowed) & (jnp.abs(jnp.sum(y) - 1.0) <= allowed))
        return jnp.where(outside, jnp.inf, tau * jnp.sum(jax.scipy.special.xlogy(inside, inside)))

    return make_kappa(
        name="log_sum_exp",
        value=keep_dtype(value),
        subgradient=keep_dtype(subgradient),
        conjugate=keep_dtype(conjugate),
        project=keep_dtype(project_simplex),
        conjugate_subgradient=keep_dtype(lambda y: tau * (jnp.log(project_simplex(y)) + 1.0)),
        dual_norm=None,
        is_even=False,
        is_smooth=True,
        is_symmetric=True,
    )


def project_simplex(y: Array) -> Array:
    """Nearest point of {x >= 0, sum x = 1} to an array of any shape."""
    flat = jnp.sort(y.reshape(-1))[::-1]
    sums = jnp.cumsum(flat)
    count = jnp.arange(1, flat.size + 1, dtype=y.dtype)
    last = jnp.sum(flat * count > sums - 1.0) - 1
    theta = (sums[last] - 1.0) / count[last]
    return jnp.maximum(y - theta, 0.0)
