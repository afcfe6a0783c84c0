"""The best linear self-attention layer, and what any layer loses, in closed form.

One layer of linear self-attention answers query^T P sum_i y_i x_i at its optimum: a preconditioned
gradient step. With x ~ N(mean, Sigma), C = Sigma + mean mean^T, w ~ N(0, W), noise sigma and n
examples, the loss E (answer - y)^2 is a quadratic in P,

    sigma^2 + tr(C W) - 2 n tr(C P C W) + tr(C P M P^T),
    M = n (n - 1) C W C + n E[x x^T W x x^T] + n sigma^2 C,

and for zero mean P* = W [(n + 1) Sigma W + (tr(Sigma W) + sigma^2) I]^-1 (Mahankali et al.,
arXiv:2307.03576, for Sigma = W^-1; Ahn et al., arXiv:2306.00297, for W = I).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class Optimum(NamedTuple):
    """The best layer and its loss."""

    P: Array  # [d, d]
    loss: Array  # scalar, the noise of the query's answer included


class Step(NamedTuple):
    """The best single gradient step on the sum over the context, and its loss."""

    learning_rate: float
    loss: float


def _mm(*matrices: Array) -> Array:
    result = matrices[0]
    for matrix in matrices[1:]:
        result = jnp.matmul(result, matrix, precision=HIGHEST)
    return result


def _moments(caller: str, covariance: Any, prior: Any, noise: Any, mean: Any):
    if np.ndim(covariance) != 2 or np.shape(covariance)[0] != np.shape(covariance)[1]:
        raise ValueError(
            f"{caller}: covariance must be a matrix [d, d], got shape {np.shape(covariance)}; "
            "for unit variance pass jnp.eye(d)."
        )
    d = np.shape(covariance)[0]
    prior = jnp.eye(d, dtype=jnp.asarray(covariance).dtype) if prior is None else prior
    mean = jnp.zeros(d, jnp.asarray(covariance).dtype) if mean is None else mean
    _check.shape(caller, "prior", prior, (d, d), "like covariance")
    _check.shape(caller, "mean", mean, (d,), "one per input")
    _check.number(caller, low=0.0, noise=noise)
    _check.finite(caller, covariance=covariance, prior=prior, mean=mean, noise=noise)
    covariance, prior, mean = _check.floating(covariance, prior, mean)
    return covariance, prior, jnp.asarray(noise, covariance.dtype) ** 2, mean


def _second_moment(n: int, covariance: Array, prior: Array, variance: Array, mean: Array) -> Array:
    """M = E[X^T y y^T X], [d, d]."""
    outer = mean[:, None] * mean[None, :]
    C = covariance + outer
    # Isserlis with a mean: the sum over pairings in C, less 2 m m m m.
    fourth = 2 * _mm(C, prior, C) + jnp.trace(_mm(prior, C)) * C - 2 * _mm(outer, prior, outer)
    return n * (n - 1) * _mm(C, prior, C) + n * fourth + n * variance * C


def optimal(
    n: int, *, covariance: Any, prior: Any = None, noise: Any = 0.0, mean: Any = None
) -> Optimum:
    """The global optimum of one linear self-attention layer.

    Args:
      n: examples in the context.
      covariance: of the inputs, Sigma, [d, d].
      prior: covariance of the weights, W, [d, d]; None is the identity.
      noise: standard deviation sigma of every answer.
      mean: of the inputs, [d]; None is zero.
    Returns:
      P [d, d] and the loss, scalar. For Sigma = I and W = tau^2 I, P is the identity divided by
      n + d + 1 + sigma^2 / tau^2.
    Raises:
      ValueError: a shape, a size or a value is not as above.

    >>> import jax.numpy as jnp
    >>> P, loss = optimal(20, covariance=jnp.eye(5), prior=jnp.eye(5), noise=0.5)
    >>> round(1 / float(P[0, 0]), 3), round(float(loss), 4)
    (26.25, 1.4405)
    """
    _check.integer("optimal", n=n)
    covariance, prior, variance, mean = _moments("optimal", covariance, prior, noise, mean)
    if not _check.is_traced(mean) and not np.any(np.asarray(mean)):
        d = covariance.shape[0]
        inner = (n + 1) * _mm(covariance, prior)
        inner = inner + (jnp.trace(inner) / (n + 1) + variance) * jnp.eye(d, dtype=inner.dtype)
        P = jnp.linalg.solve(inner.T, prior.T).T
    else:
        C = covariance + mean[:, None] * mean[None, :]
        M = _second_moment(n, covariance, prior, variance, mean)
        P = n * jnp.linalg.solve(M.T, _mm(prior, C).T).T
    return Optimum(P, _loss(P, n, covariance, prior, variance, mean))


def population_loss(
    P: Any, n: int, *, covariance: Any, prior: Any = None, noise: Any = 0.0, mean: Any = None
) -> Array:
    """The exact loss E (query^T P sum_i y_i x_i - y)^2 of any P, [d, d].

    The other arguments are those of `optimal`. Lengths other than the one that P was made for give
    its length generalisation; P n_train / n is the normalised control.
    """
    _check.integer("population_loss", n=n)
    moments = _moments("population_loss", covariance, prior, noise, mean)
    _check.shape("population_loss", "P", P, moments[0].shape, "like covariance")
    _check.finite("population_loss", P=P)
    return _loss(jnp.asarray(P, moments[0].dtype), n, *moments)


def _loss(P, n, covariance, prior, variance, mean) -> Array:
    C = covariance + mean[:, None] * mean[None, :]
    M = _second_moment(n, covariance, prior, variance, mean)
    gain = 2 * n * jnp.trace(_mm(C, P, C, prior))
    return variance + jnp.trace(_mm(C, prior)) - gain + jnp.trace(_mm(C, P, M, P.T))


def debiased_loss(
    P: Any, n: int, *, covariance: Any, prior: Any = None, noise: Any = 0.0, mean: Any = None
) -> Array:
    """The exact loss of query^T P sum_i y_i (x_i - mean of the context).

    The centred Gram matrix is a Wishart matrix with n - 1 degrees of freedom whatever the mean is,
    so a mean enters through the query alone.
    """
    _check.integer("debiased_loss", n=n, low=2)
    covariance, prior, variance, mean = _moments("debiased_loss", covariance, prior, noise, mean)
    _check.shape("debiased_loss", "P", P, covariance.shape, "like covariance")
    P = jnp.asarray(P, covariance.dtype)
    C = covariance + mean[:, None] * mean[None, :]
    M = _second_moment(n - 1, covariance, prior, variance, jnp.zeros_like(mean))
    gain = 2 * (n - 1) * jnp.trace(_mm(C, P, covariance, prior))
    return variance + jnp.trace(_mm(C, prior)) - gain + jnp.trace(_mm(C, P, M, P.T))


def optimal_step(n: int, dim: int, *, noise: float = 0.0, prior_variance: float = 1.0) -> Step:
    """Isotropic inputs and weights: learning rate 1 / (n + d + 1 + noise^2 / prior_variance)."""
    _sizes("optimal_step", n, dim, noise, prior_variance)
    ratio = noise**2 / prior_variance
    learning_rate = 1 / (n + dim + 1 + ratio)
    return Step(
        learning_rate, loss_at_length(n, n, dim, noise=noise, prior_variance=prior_variance)
    )


def loss_at_length(
    n_train: int,
    n: int,
    dim: int,
    *,
    noise: float = 0.0,
    prior_variance: float = 1.0,
    normalised: bool = False,
) -> float:
    """The loss at n examples of the step that is optimal at n_train.

    Args:
      n_train, n: context lengths.
      dim, noise, prior_variance: as in `optimal_step`.
      normalised: divide the sum by the context length, that is learning_rate * n_train / n.
    """
    _sizes("loss_at_length", n, dim, noise, prior_variance)
    _check.integer("loss_at_length", n_train=n_train)
    ratio = noise**2 / prior_variance
    eta = 1 / (n_train + dim + 1 + ratio)
    if normalised:
        eta *= n_train / n
    excess = 1 - 2 * eta * n + eta**2 * n * (n + dim + 1 + ratio)
    return noise**2 + prior_variance * dim * excess


def optimal_uniform_step(
    n: int, dim: int, *, half_width: float, noise: float = 0.0, prior_variance: float = 1.0
) -> Step:
    """Inputs uniform in (-half_width, half_width)^d: one plain step is still optimal.

    Its learning rate is (1 / m) / (k + n + d - 2 + noise^2 / (prior_variance m)) with the second
    moment m = half_width^2 / 3 of a coordinate and its kurtosis k = 9/5.
    """
    _sizes("optimal_uniform_step", n, dim, noise, prior_variance)
    _check.number("optimal_uniform_step", low=0.0, strict=True, half_width=half_width)
    moment = half_width**2 / 3
    ratio = noise**2 / (prior_variance * moment)
    learning_rate = 1 / (moment * (9 / 5 + n + dim - 2 + ratio))
    total = prior_variance * dim * moment
    return Step(learning_rate, noise**2 + total * (1 - learning_rate * n * moment))


def optimal_relu_step(n: int, dim: int, *, noise: float = 0.0) -> Step:
    """Answers +-relu(<w, x>) + noise: learning rate 1 / (n + 2 d + 3 + 4 noise^2)."""
    _sizes("optimal_relu_step", n, dim, noise, 1.0)
    learning_rate = 1 / (n + 2 * dim + 3 + 4 * noise**2)
    return Step(learning_rate, noise**2 + dim / 2 - learning_rate * n * dim / 4)


def optimal_response_step(
    response: Callable[[np.ndarray], np.ndarray], n: int, dim: int, *, noise: float = 0.0
) -> Step:
    """Answers s response(<w, x>) + noise with a random sign s, by quadrature (float64).

    Args:
      response: a function of an array, smooth but for a kink or jump at 0.
      n, dim, noise: as in `optimal_step`; x and w are standard Gaussian.
    """
    _sizes("optimal_response_step", n, dim, noise, 1.0)
    # Given |w| = r, <w, x> = r z with z standard Gaussian. Each side of 0 has its own nodes.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = 10.0 * (nodes + 1) / 2
    z = np.concatenate([-z, z])
    density = np.tile(weights * 5.0, 2) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    top = math.sqrt(dim) + 10.0
    r = top * (nodes + 1) / 2
    log_chi = (dim - 1) * np.log(r) - r**2 / 2 - (dim / 2 - 1) * math.log(2) - math.lgamma(dim / 2)
    chi = weights * top / 2 * np.exp(log_chi)
    values = np.asarray(response(r[:, None] * z[None, :]), np.float64)
    if values.shape != (r.size, z.size) or not np.isfinite(values).all():
        raise ValueError(
            "optimal_response_step: response must map an array to finite values of its shape, "
            f"got shape {values.shape}."
        )
    slope = float(chi @ (values @ (density * z)) ** 2)
    power = float(chi @ (values**2 @ density))
    with_inputs = float(chi @ (values**2 @ (density * (z**2 + dim - 1))))
    learning_rate = slope / (with_inputs + noise**2 * dim + (n - 1) * slope)
    return Step(learning_rate, noise**2 + power - learning_rate * n * slope)


def _sizes(caller: str, n: int, dim: int, noise: float, prior_variance: float) -> None:
    _check.integer(caller, n=n, dim=dim)
    _check.number(caller, low=0.0, noise=noise)
    _check.number(caller, low=0.0, strict=True, prior_variance=prior_variance)
