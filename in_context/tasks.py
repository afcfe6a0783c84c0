"""Prompt distributions: small objects that draw batches of prompts on the device from a key.

A prompt is a context of inputs and answers, and a query whose answer is to be predicted. `noise`
is always a standard deviation, and the answer to the query carries it too.

>>> import jax
>>> from in_context import tasks
>>> task = tasks.LinearRegression(num_context=20, dim=5, noise=0.5)
>>> prompt = task.sample(jax.random.key(0), 64)
>>> prompt.x.shape, prompt.y.shape, prompt.query.shape, prompt.target.shape
((64, 20, 5), (64, 20), (64, 5), (64,))
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from in_context import _check

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


class Prompt(NamedTuple):
    """A prompt or a batch of them; (x, y, query) alone serves every predictor as well."""

    x: Array  # [..., n, d] inputs of the context
    y: Array  # [..., n] answers, or [..., n, k] for k outputs
    query: Array  # [..., d]
    target: Array  # [...] or [..., k], the query's answer


class Task(Protocol):
    """Anything that draws prompts."""

    def sample(self, key: Array, batch_size: int) -> Prompt:
        """A batch of prompts."""
        ...


def _static(default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearRegression:
    """y = response(<w, x>) + noise with Gaussian weights that are new in every prompt."""

    num_context: int = _static()
    dim: int = _static()
    noise: Any = 0.0  # standard deviation
    covariance: Any = None  # of the inputs, [d, d]; None: identity
    prior: Any = None  # covariance of the weights, [d, d]; None: identity
    mean: Any = None  # of the inputs, [d]; None: zero
    half_width: Any = None  # inputs uniform in (-half_width, half_width)^d, not Gaussian
    response: str = _static("identity")  # or "relu": +-relu(<w, x>), one sign per prompt
    dtype: str = _static("float32")

    def sample(self, key: Array, batch_size: int) -> Prompt:
        """Draws `batch_size` prompts; see the module for the shapes.

        Raises:
          ValueError: a size is below 1, a matrix has the wrong shape, or an option is unknown.
        """
        self._validate(batch_size)
        n, d = self.num_context, self.dim
        # One draw for everything: on a CPU several small draws cost twice as much.
        rows = (n + 1) * (d + 1) + d + 1
        flat = jax.random.normal(key, (batch_size * rows,), self.dtype).reshape(batch_size, rows)
        x = flat[:, : (n + 1) * d].reshape(batch_size, n + 1, d)
        noise = flat[:, (n + 1) * d : (n + 1) * (d + 1)]
        w = _coloured(flat[:, (n + 1) * (d + 1) : -1], self.prior)
        if self.half_width is not None:
            x = self.half_width * (2 * jax.scipy.stats.norm.cdf(x) - 1)
        else:
            x = _coloured(x, self.covariance)
        if self.mean is not None:
            x = x + jnp.broadcast_to(jnp.asarray(self.mean, x.dtype), x.shape)
        y = jnp.sum(x * w[:, None, :], axis=-1)
        if self.response == "relu":
            y = jnp.sign(flat[:, -1:]) * jax.nn.relu(y)
        y = y + jnp.asarray(self.noise, y.dtype) * noise
        return Prompt(x[:, :n], y[:, :n], x[:, n], y[:, n])

    def _validate(self, batch_size: int) -> None:
        name = "LinearRegression"
        _check.integer(name, num_context=self.num_context, dim=self.dim, batch_size=batch_size)
        _check.number(name, low=0.0, noise=self.noise)
        _check.number(name, low=0.0, strict=True, half_width=self.half_width)
        square = (self.dim, self.dim)
        for label, value in (("covariance", self.covariance), ("prior", self.prior)):
            if value is not None:
                _check.shape(name, label, value, square, "[d, d]")
        if self.mean is not None:
            _check.shape(name, "mean", self.mean, (self.dim,), "[d]")
        if self.response not in ("identity", "relu"):
            raise ValueError(
                f"{name}: response must be 'identity' or 'relu', got {self.response!r}."
            )
        if self.half_width is not None and self.covariance is not None:
            raise ValueError(
                f"{name}: half_width and covariance exclude each other; uniform inputs are "
                "isotropic. Pass one of the two."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskPool:
    """Linear regression whose weights come from a finite pool, as in studies of task diversity."""

    pool: Any  # [m, d], each row as likely as the next
    num_context: int = _static()
    noise: Any = 0.0  # standard deviation

    def sample(self, key: Array, batch_size: int) -> Prompt:
        """Draws `batch_size` prompts."""
        _check.integer("TaskPool", num_context=self.num_context, batch_size=batch_size)
        _check.number("TaskPool", low=0.0, noise=self.noise)
        pool = jnp.asarray(self.pool)
        which_key, input_key, noise_key = jax.random.split(key, 3)
        which = jax.random.randint(which_key, (batch_size,), 0, pool.shape[0])
        n = self.num_context
        shape = (batch_size, n + 1, pool.shape[1])
        x = jax.random.normal(input_key, shape, pool.dtype)
        y = jnp.sum(x * pool[which][:, None, :], axis=-1)
        y = y + self.noise * jax.random.normal(noise_key, y.shape, y.dtype)
        return Prompt(x[:, :n], y[:, :n], x[:, n], y[:, n])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MultiTask:
    """Several regressions on the same inputs, each on a subset of the coordinates.

    Output j is <w_j, x restricted to supports[j]> + noise, with weights of variance 1 / |support|.
    """

    num_context: int = _static()
    supports: tuple[tuple[int, ...], ...] = _static()  # coordinates that output j depends on
    dim: int = _static()
    noise: Any = 0.0  # standard deviation

    def sample(self, key: Array, batch_size: int) -> Prompt:
        """Draws `batch_size` prompts with y [batch, n, k] and target [batch, k]."""
        _check.integer(
            "MultiTask", num_context=self.num_context, dim=self.dim, batch_size=batch_size
        )
        _check.number("MultiTask", low=0.0, noise=self.noise)
        n, d, k = self.num_context, self.dim, len(self.supports)
        mask = jnp.zeros((k, d))
        for output, support in enumerate(self.supports):
            if not support or min(support) < 0 or max(support) >= d:
                raise ValueError(
                    f"MultiTask: supports[{output}] must hold coordinates in [0, {d}), "
                    f"got {support}."
                )
            mask = mask.at[output, jnp.array(support)].set(len(support) ** -0.5)
        rows = (n + 1) * (d + k) + k * d
        flat = jax.random.normal(key, (batch_size * rows,)).reshape(batch_size, rows)
        x = flat[:, : (n + 1) * d].reshape(batch_size, n + 1, d)
        noise = flat[:, (n + 1) * d : (n + 1) * (d + k)].reshape(batch_size, n + 1, k)
        w = flat[:, (n + 1) * (d + k) :].reshape(batch_size, k, d) * mask[None]
        y = jnp.einsum("bnd,bkd->bnk", x, w, precision=HIGHEST) + self.noise * noise
        return Prompt(x[:, :n], y[:, :n], x[:, n], y[:, n])


def toeplitz(dim: int, correlation: float) -> Array:
    """The covariance correlation^|i - j|, [dim, dim]."""
    _check.integer("toeplitz", dim=dim)
    if not -1 < correlation < 1:
        raise ValueError(f"toeplitz: correlation must be in (-1, 1), got {correlation!r}.")
    place = jnp.arange(dim)
    return jnp.asarray(correlation, float) ** jnp.abs(place[:, None] - place[None, :])


def _coloured(white: Array, covariance: Any) -> Array:
    """Gives white rows the covariance; a symmetric root, so that it may be singular."""
    if covariance is None:
        return white
    values, vectors = jnp.linalg.eigh(jnp.asarray(covariance, white.dtype))
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]
    return jnp.einsum("...d,ed->...e", white, root, precision=HIGHEST)
