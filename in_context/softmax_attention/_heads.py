"""Heads in their reduced form: one key-query number omega and one output number mu per head.

Trained softmax attention on linear regression answers sum_h mu_h <y, softmax(omega_h X x_q)> (He,
Pan, Chen & Yang, arXiv:2503.12734). For small omega of zero-sum mu that is debiased gradient
descent with learning rate sum_h mu_h omega_h / n.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.linear_attention import Optimum, Step, optimal
from in_context.predictors import debiased

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def apply_heads(omega: Any, mu: Any, prompt: Any) -> Array:
    """sum_h mu_h <y, softmax(X omega_h x_q)>.

    Args:
      omega: [H], key-query numbers, or [H, d, d], key-query matrices.
      mu: [H].
      prompt: x [..., n, d], y [..., n], query [..., d] (`tasks.Prompt` or such a tuple).
    Returns:
      [...], one answer per query.
    Raises:
      ValueError: omega and mu do not belong to the same heads, or the prompt does not fit.
    """
    x, y, query = (jnp.asarray(part) for part in prompt[:3])
    omega, mu = jnp.asarray(omega, x.dtype), jnp.asarray(mu, x.dtype)
    if mu.ndim != 1 or omega.shape not in (mu.shape, mu.shape + 2 * x.shape[-1:]):
        raise ValueError(
            "apply_heads: omega and mu must be [H], or omega [H, d, d], got shapes "
            f"{omega.shape} and {mu.shape}."
        )
    if y.shape != x.shape[:-1] or query.shape != x.shape[:-2] + x.shape[-1:]:
        raise ValueError(
            "apply_heads: a prompt needs x [..., n, d], y [..., n] and query [..., d], got shapes "
            f"{x.shape}, {y.shape} and {query.shape}."
        )
    _check.finite("apply_heads", omega=omega, mu=mu)
    scores = jnp.einsum("...nd,...d->...n", x, query, precision=HIGHEST)

    def head(omega_h, mu_h):
        if omega_h.ndim == 0:
            logits = omega_h * scores
        else:
            logits = jnp.einsum("...nd,de,...e->...n", x, omega_h, query, precision=HIGHEST)
        return mu_h * jnp.sum(y * jax.nn.softmax(logits), axis=-1)

    return jnp.sum(jax.vmap(head)(omega, mu), axis=0)


def debiased_gradient_descent(prompt: Any, learning_rate: Any) -> Array:
    """(learning_rate / n) sum_i y_i <x_i - mean(x), query>: what two small heads compute.

    Args:
      prompt: as in `apply_heads`.
      learning_rate: sum_h mu_h omega_h; near 1 at the optimum. `predictors.debiased` takes it
        already divided by n.
    """
    return debiased(prompt, learning_rate / np.shape(prompt[0])[-2])


def optimal_debiased(n: int, dim: int, *, noise: float = 0.0, prior_variance: float = 1.0) -> Step:
    """The best debiased step for isotropic inputs, exactly.

    Its coefficient on the sum over the context is 1 / (n + d + noise^2 / prior_variance): the
    centred Gram matrix is a Wishart matrix with n - 1 degrees of freedom. `learning_rate` is that
    coefficient times n, the sum_h mu_h omega_h of heads.
    """
    _check.integer("optimal_debiased", n=n, low=2)
    _check.integer("optimal_debiased", dim=dim)
    _check.number("optimal_debiased", low=0.0, noise=noise)
    _check.number("optimal_debiased", low=0.0, strict=True, prior_variance=prior_variance)
    ratio = noise**2 / prior_variance
    remaining = (dim + 1 + ratio) / (n + dim + ratio)
    return Step(n / (n + dim + ratio), noise**2 + prior_variance * dim * remaining)


def optimal_preconditioned(
    n: int, *, covariance: Any, prior: Any = None, noise: Any = 0.0
) -> Optimum:
    """The best debiased step query^T P sum_i y_i (x_i - mean) for any covariance, exactly.

    The centred context is as good as n - 1 examples around a known mean, so P is what linear
    attention has at n - 1. Heads of opposite mu and key-query matrices +-omega reach it for small
    omega with 2 mu omega / n = P.

    Args:
      n, covariance, prior, noise: as in `linear_attention.optimal`; n >= 2 and no mean.
    """
    _check.integer("optimal_preconditioned", n=n, low=2)
    return optimal(n - 1, covariance=covariance, prior=prior, noise=noise)
