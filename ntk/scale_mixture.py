"""Scale mixtures of wide-network Gaussian processes (Lee, Yun, Yang, Lee, ICLR 2022).

The weights of the last layer share one random variance s ~ H, and the last layer has no bias (or a
bias with the same variance). Given s the network is a Gaussian process with kernel s K, and its
tangent kernel is s Theta; over s it has heavy tails. With H = InverseGamma(a, b) everything is a
Student t; for any other H one Cholesky factorization leaves integrals over the one number log s.

Letters: n targets y with C columns, K [n, n] with the noise inside, K_x [m, n] of test with
training points, K_xx [m, m], q = sum over columns of y' K^-1 y.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jax.scipy.special import gammaln, logsumexp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InverseGamma:
    """Density b^a / Gamma(a) s^(-a-1) exp(-b / s).

    Attributes:
      a: shape, positive.
      b: scale, positive.
    """

    a: Any
    b: Any

    def log_density(self, s: Array) -> Array:
        """Logarithm of the density at s > 0."""
        a, b = self.a, self.b
        return a * jnp.log(b) - gammaln(a) - (a + 1) * jnp.log(s) - b / s


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BurrXII:
    """Density c k s^(c-1) / (1 + s^c)^(k+1), with tails s^(-c k - 1).

    Attributes:
      c: first shape, positive.
      k: second shape, positive.
    """

    c: Any
    k: Any

    def log_density(self, s: Array) -> Array:
        """Logarithm of the density at s > 0."""
        log_s = jnp.log(s)
        return (
            jnp.log(self.c)
            + jnp.log(self.k)
            + (self.c - 1) * log_s
            - (self.k + 1) * jnp.logaddexp(0.0, self.c * log_s)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StudentT:
    """Multivariate t laws, one per column of `loc`, uncorrelated but with one common scale s.

    Attributes:
      dof: degrees of freedom.
      loc: location, [m, C].
      scale: scale matrix, [m, m].
    """

    dof: Any
    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        """The location; it is the mean for dof > 1."""
        return self.loc

    @property
    def covariance(self) -> Array:
        """scale * dof / (dof - 2) for dof > 2, infinite otherwise."""
        dof = jnp.asarray(self.dof)
        factor = jnp.where(dof > 2, dof / jnp.where(dof > 2, dof - 2, 1), jnp.inf)
        return self.scale * factor

    def log_density(self, values: Array) -> Array:
        """Logarithm of the joint density of values [m, C]."""
        rows, columns = values.shape
        chol, q = _quadratic(self.scale, values - self.loc)
        count = rows * columns
        return (
            gammaln((self.dof + count) / 2)
            - gammaln(jnp.asarray(self.dof / 2))
            - count / 2 * jnp.log(self.dof * math.pi)
            - columns * jnp.sum(jnp.log(jnp.diag(chol)))
            - (self.dof + count) / 2 * jnp.log1p(q / self.dof)
        )


def _columns(y: Array) -> Array:
    y = jnp.asarray(y)
    if y.ndim not in (1, 2):
        raise ValueError(f"scale_mixture: targets must be [n] or [n, C], got shape {y.shape}.")
    return y[:, None] if y.ndim == 1 else y


def _quadratic(kernel: Array, y: Array) -> tuple[Array, Array]:
    """Cholesky factor of the kernel and q."""
    chol, lower = cho_factor(kernel, lower=True)
    return chol, jnp.sum(y * cho_solve((chol, lower), y))


def posterior(prior: InverseGamma, kernel: Array, y: Array) -> InverseGamma:
    """The law of s given exact targets: InverseGamma(a + n C / 2, b + q / 2).

    Args:
      prior: of s.
      kernel: K, [n, n].
      y: targets, [n] or [n, C].
    """
    y = _columns(y)
    _, q = _quadratic(kernel, y)
    return InverseGamma(prior.a + y.size / 2, prior.b + q / 2)


def predict(prior: InverseGamma, kernel: Array, cross: Array, test: Array, y: Array) -> StudentT:
    """The Bayesian predictive law: t with 2a + nC degrees of freedom.

    Args:
      prior: of s.
      kernel: K of the training points, [n, n].
      cross: K_x of test with training points, [m, n].
      test: K_xx, [m, m].
      y: targets, [n] or [n, C].
    """
    y = _columns(y)
    after = posterior(prior, kernel, y)
    mean, rest = _condition(kernel, cross, test, y)
    return StudentT(2 * after.a, mean, rest * (after.b / after.a))


def _condition(kernel: Array, cross: Array, test: Array, y: Array) -> tuple[Array, Array]:
    factor = cho_factor(kernel, lower=True)
    return cross @ cho_solve(factor, y), test - cross @ cho_solve(factor, cross.T)


def trained(
    prior: InverseGamma,
    nngp: tuple[Array, Array, Array],
    y: Array,
    ntk: tuple[Array, Array] | None = None,
) -> StudentT:
    """The law of networks trained by gradient flow on squared loss to zero loss, without noise.

    Training leaves the law of s at its prior, unlike conditioning.

    Args:
      prior: of s.
      nngp: K, K_x, K_xx.
      y: targets, [n] or [n, C].
      ntk: Theta, Theta_x when all layers are trained; None when only the last is.
    """
    kernel, cross, test = nngp
    y = _columns(y)
    if ntk is None:
        mean, rest = _condition(kernel, cross, test, y)
    else:
        theta, theta_cross = ntk
        weights = cho_solve(cho_factor(theta, lower=True), theta_cross.T).T
        mean = weights @ y
        mixed = weights @ cross.T
        rest = test + weights @ kernel @ weights.T - mixed - mixed.T
    return StudentT(2 * prior.a, mean, rest * (prior.b / prior.a))


def log_evidence(
    prior: Any, kernel: Array, y: Array, *, noise: Any = None, nodes: int = 96
) -> Array:
    """Logarithm of the marginal density of the targets.

    Args:
      prior: of s: an InverseGamma (closed form), or anything with `log_density(s)`.
      kernel: K, [n, n].
      y: targets, [n] or [n, C].
      noise: variance of noise that s does not scale; None for none.
      nodes: of the integral over log s, when there is one.
    """
    y = _columns(y)
    if isinstance(prior, InverseGamma) and noise is None:
        zero = jnp.zeros_like(y)
        return StudentT(2 * prior.a, zero, kernel * (prior.b / prior.a)).log_density(y)
    _, log_weights = _nodes(prior, _likelihood(kernel, y, noise), nodes)
    return logsumexp(log_weights)


def _likelihood(kernel: Array, y: Array, noise: Any) -> Callable[[Array], Array]:
    """log N(y; 0, s K + noise) as a function of log s, [k] -> [k]."""
    columns = y.shape[1]
    if noise is None:
        chol, q = _quadratic(kernel, y)
        log_det = 2 * jnp.sum(jnp.log(jnp.diag(chol)))

        def exact(log_s):
            constant = y.size * (jnp.log(2 * math.pi) + log_s) + columns * log_det
            return -(constant + q * jnp.exp(-log_s)) / 2

        return exact

    values, vectors = jnp.linalg.eigh(kernel)
    power = jnp.sum((vectors.T @ y) ** 2, axis=1)

    def density(log_s):
        total = jnp.maximum(values, 0)[None, :] * jnp.exp(log_s)[:, None] + noise
        log_det = columns * jnp.sum(jnp.log(total), axis=1)
        fit = jnp.sum(power[None, :] / total, axis=1)
        return -(y.size * math.log(2 * math.pi) + log_det + fit) / 2

    return density


def _nodes(prior: Any, density: Callable[[Array], Array], nodes: int) -> tuple[Array, Array]:
    """Values of s and logarithms of their weights times likelihood.

    The integrand in t = log s is smooth and bell-shaped: its mode and the points where it has
    fallen by exp(-60) are found on two grids, then equispaced points between them converge like
    a trapezoidal rule of an analytic function.
    """

    def integrand(t):
        return density(t) + prior.log_density(jnp.exp(t)) + t

    grid = jnp.linspace(-60.0, 60.0, 961)
    low, high = grid[0], grid[-1]
    for _ in range(2):
        grid = jnp.linspace(low, high, 961)
        values = jax.lax.stop_gradient(integrand(grid))
        alive = values > jnp.max(values) - 60
        step = grid[1] - grid[0]
        low = jnp.min(jnp.where(alive, grid, jnp.inf)) - step
        high = jnp.max(jnp.where(alive, grid, -jnp.inf)) + step
    t = jnp.linspace(jax.lax.stop_gradient(low), jax.lax.stop_gradient(high), nodes)
    return jnp.exp(t), integrand(t) + jnp.log(t[1] - t[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A finite mixture of Gaussian laws N(mean, s_i covariance).

    Attributes:
      s: scales, [k].
      weights: probabilities, [k].
      loc: common mean, [m, C].
      unit: covariance at s = 1, [m, m].
    """

    s: Array
    weights: Array
    loc: Array
    unit: Array

    @property
    def mean(self) -> Array:
        """The mean."""
        return self.loc

    @property
    def covariance(self) -> Array:
        """The covariance of each column."""
        return self.unit * jnp.sum(self.weights * self.s)

    def log_density(self, values: Array) -> Array:
        """Logarithm of the joint density of values [m, C]."""
        density = _likelihood(self.unit, values - self.loc, None)
        return logsumexp(density(jnp.log(self.s)), b=self.weights)


def predict_mixture(
    prior: Any, kernel: Array, cross: Array, test: Array, y: Array, *, nodes: int = 96
) -> Mixture:
    """The Bayesian predictive law for any prior of s, by quadrature instead of sampling.

    Args:
      prior: anything with `log_density(s)`.
      kernel, cross, test, y: as in `predict`.
      nodes: of the integral over log s.
    """
    y = _columns(y)
    s, log_weights = _nodes(prior, _likelihood(kernel, y, None), nodes)
    mean, rest = _condition(kernel, cross, test, y)
    return Mixture(s, jnp.exp(log_weights - logsumexp(log_weights)), mean, rest)


def sample(law: StudentT, key: Array, shape: tuple[int, ...] = ()) -> Array:
    """Draws from a t law: [*shape, m, C], one common scale per draw.

    Args:
      law: where from.
      key: random key.
      shape: of the draws.
    """
    key_s, key_f = jax.random.split(key)
    chol = jnp.linalg.cholesky(law.scale)
    half = jnp.asarray(law.dof / 2, chol.dtype)
    chi = jax.random.gamma(key_s, half, shape, chol.dtype) / half
    noise = jax.random.normal(key_f, shape + law.loc.shape, chol.dtype)
    drawn = jnp.einsum("ij,...jc->...ic", chol, noise)
    return law.loc.reshape((1,) * len(shape) + law.loc.shape) + drawn / jnp.sqrt(
        chi.reshape(shape + (1, 1))
    )
