"""The reduced model of He et al. (arXiv:2503.12734): a loss in 2 H numbers and its descent.

With inputs N(0, I_d), weights N(0, I_d / d), noise sigma and large n, the loss of heads (omega, mu)
is close to

    1 + sigma^2 - 2 mu.omega + mu^T (omega omega^T + (1 + sigma^2) / n exp(d omega omega^T)) mu

with exp entrywise. Close is 9 to 10 % at d = 5, n = 40: it explains the dynamics, and it is no bar
for a trained model, whose exact bar is `optimal_debiased`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class Flow(NamedTuple):
    """Gradient descent on the reduced loss, at evenly spaced records."""

    steps: Array  # [records]
    omega: Array  # [records, H]
    mu: Array  # [records, H]
    losses: Array  # [records]


def _matrix(omega: Array, n: int, dim: int, noise: Any) -> Array:
    outer = omega[:, None] * omega[None, :]
    return outer + (1 + noise**2) / n * jnp.exp(dim * outer)


def approximate_loss(omega: Any, mu: Any, n: int, dim: int, *, noise: Any = 0.0) -> Array:
    """The reduced loss of the module, for heads [H]."""
    omega, mu = _check.floating(omega, mu)
    product = jnp.matmul(_matrix(omega, n, dim, noise), mu, precision=HIGHEST)
    return 1 + noise**2 - 2 * jnp.sum(mu * omega) + jnp.sum(mu * product)


def optimal_mu(omega: Any, n: int, dim: int, *, noise: Any = 0.0) -> Array:
    """The mu [H] that minimises the reduced loss for given omega [H] without repeats."""
    (omega,) = _check.floating(omega)
    return jnp.linalg.solve(_matrix(omega, n, dim, noise), omega)


def approximate_limit(n: int, dim: int, *, noise: float = 0.0, num_heads: int = 2) -> float:
    """The infimum of the reduced loss.

    One head: reached at omega = 1 / sqrt(d). More heads: approached as omega -> 0 with
    sum_h mu_h omega_h = 1 / (1 + d (1 + noise^2) / n), which is debiased gradient descent.

    >>> round(approximate_limit(40, 5, noise=0.1**0.5), 4)
    0.2209
    """
    _check.integer("approximate_limit", n=n, dim=dim, num_heads=num_heads)
    _check.number("approximate_limit", low=0.0, noise=noise)
    signal = (1 + noise**2) / n
    if num_heads == 1:
        omega = jnp.full(1, dim**-0.5)
        mu = optimal_mu(omega, n, dim, noise=noise)
        return float(approximate_loss(omega, mu, n, dim, noise=noise))
    return 1 + noise**2 - 1 / (1 + dim * signal)


def gradient_flow(
    omega: Any,
    mu: Any,
    n: int,
    dim: int,
    *,
    noise: float = 0.0,
    learning_rate: float = 0.01,
    num_steps: int = 200_000,
    num_records: int = 400,
) -> Flow:
    """Gradient descent with small steps on the reduced loss.

    Args:
      omega, mu: [H], the start; not zero, which is a saddle.
      n, dim, noise: of the reduced loss.
      learning_rate, num_steps: of the descent; their product is the time of the flow.
      num_records: points that are kept; divides num_steps.
    Raises:
      ValueError: num_records does not divide num_steps, or a size or number is out of range.
    """
    _check.integer("gradient_flow", n=n, dim=dim, num_steps=num_steps, num_records=num_records)
    _check.number("gradient_flow", low=0.0, strict=True, learning_rate=learning_rate)
    _check.finite("gradient_flow", omega=omega, mu=mu)
    if num_steps % num_records:
        raise ValueError(
            f"gradient_flow: num_records={num_records} must divide num_steps={num_steps}."
        )
    omega, mu = _check.floating(omega, mu)
    return _flow(omega, mu, noise, learning_rate, n, dim, num_steps // num_records, num_records)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _flow(omega, mu, noise, learning_rate, n, dim, inner, records) -> Flow:
    def loss(heads):
        return approximate_loss(*heads, n, dim, noise=noise)

    def step(heads, _):
        slope = jax.grad(loss)(heads)
        return jax.tree.map(lambda h, g: h - learning_rate * g, heads, slope), None

    def record(heads, _):
        heads, _ = jax.lax.scan(step, heads, length=inner)
        return heads, (heads, loss(heads))

    _, ((omegas, mus), losses) = jax.lax.scan(record, (omega, mu), length=records)
    return Flow(inner * (1 + jnp.arange(records)), omegas, mus, losses)
