"""One full layer of linear self-attention: its weights, its exact loss, its training.

With z_i = (x_i, y_i) and the query (x_q, 0), the layer answers (x_q, 0)^T KQ sum_i z_i z_i^T v. The
sum runs over the context only. The last row of KQ meets the 0 of the query and does nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from in_context import _check
from in_context._training import Trained, fit, inverse_time_adam
from in_context.linear_attention._optimal import _loss, _mm, _moments
from in_context.tasks import Prompt, Task

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
HALF_LIFE = 200  # steps at about the full learning rate; fewer do not always leave the saddle at 0


class LayerParams(NamedTuple):
    """Merged weights of a layer for inputs of dimension d."""

    key_query: Array  # [d + 1, d + 1]
    value: Array  # [d + 1]


class LayerSummary(NamedTuple):
    """What a layer has learned, beside the optimum's form P y-part only."""

    P: Array  # [d, d], the preconditioner that acts on sum_i y_i x_i
    learning_rate: Array  # mean of P's diagonal
    diagonal_spread: Array  # standard deviation over mean of P's diagonal
    off_diagonal: Array  # largest off-diagonal entry of P over the mean of its diagonal


def init(key: Array, dim: int, *, scale: float = 0.1) -> LayerParams:
    """Small Gaussian weights; zero is a saddle, so `scale` must not vanish."""
    _check.integer("init", dim=dim)
    _check.number("init", low=0.0, strict=True, scale=scale)
    first, second = jax.random.split(key)
    return LayerParams(
        scale * jax.random.normal(first, (dim + 1, dim + 1)),
        scale * jax.random.normal(second, (dim + 1,)),
    )


def apply(params: LayerParams, prompt: Any) -> Array:
    """The layer's answers to prompts with any leading axes, [...]."""
    x, y, query = prompt[:3]
    z = jnp.concatenate([x, y[..., None]], axis=-1)
    asked = jnp.einsum("...d,de->...e", query, params.key_query[:-1], precision=HIGHEST)
    attention = jnp.sum(z * asked[..., None, :], axis=-1)
    values = jnp.einsum("...ne,e->...n", z, params.value, precision=HIGHEST)
    return jnp.sum(attention * values, axis=-1)


def constructed(P: Any) -> LayerParams:
    """The layer that computes query^T P sum_i y_i x_i."""
    P = jnp.asarray(P)
    d = P.shape[0]
    _check.shape("constructed", "P", P, (d, d), "[d, d]")
    key_query = jnp.zeros((d + 1, d + 1), P.dtype).at[:d, :d].set(P)
    return LayerParams(key_query, jnp.zeros(d + 1, P.dtype).at[d].set(1.0))


def summarise(params: LayerParams) -> LayerSummary:
    """The preconditioner and how isotropic it is."""
    P = _preconditioner(params)
    diagonal = jnp.diag(P)
    mean = jnp.mean(diagonal)
    return LayerSummary(
        P,
        mean,
        jnp.std(diagonal) / jnp.abs(mean),
        jnp.max(jnp.abs(P - jnp.diag(diagonal))) / jnp.abs(mean),
    )


def _preconditioner(params: LayerParams) -> Array:
    """What acts on sum_i y_i x_i: both ways through the symmetric matrix sum_i z_i z_i^T."""
    top, value = params.key_query[:-1], params.value
    return top[:, :-1] * value[-1] + top[:, -1][:, None] * value[:-1][None, :]


def layer_loss(
    params: LayerParams, n: int, *, covariance: Any, prior: Any = None, noise: Any = 0.0
) -> Array:
    """The exact population loss of a full layer, trained or not, for zero-mean inputs.

    The answer splits into a part that is odd in the answers y, which is a preconditioned step, and
    an even part, which cannot predict and only adds its variance; both have closed forms in the
    fourth moments of Gaussians.

    Args:
      params: of the layer.
      n, covariance, prior, noise: as in `optimal`.
    """
    _check.integer("layer_loss", n=n)
    sigma, prior, variance, mean = _moments("layer_loss", covariance, prior, noise, None)
    _check.shape("layer_loss", "params.value", params.value, (len(sigma) + 1,), "[d + 1]")
    odd = _loss(_preconditioner(params), n, sigma, prior, variance, mean)
    top = params.key_query[:-1]
    K, k = top[:, :-1], top[:, -1]  # even part: K S value_x + k s value_y, S = X^T X, s = |y|^2
    value_x, value_y = params.value[:-1], params.value[-1]
    signal = jnp.trace(_mm(sigma, prior)) + variance
    spread = 2 * jnp.trace(_mm(sigma, prior, sigma, prior))
    outer = value_x[:, None] * value_x[None, :]
    gram = n * (n + 1) * _mm(sigma, outer, sigma) + n * jnp.trace(_mm(sigma, outer)) * sigma
    mixed = n**2 * signal * sigma + 2 * n * _mm(sigma, prior, sigma)  # E[S s]
    square = n * (n + 2) * (signal**2 + spread)  # E[s^2]
    cross = jnp.matmul(_mm(K, mixed), value_x, precision=HIGHEST) * value_y
    even = _mm(K, gram, K.T) + cross[:, None] * k[None, :] + k[:, None] * cross[None, :]
    even = even + square * value_y**2 * k[:, None] * k[None, :]
    return odd + jnp.trace(_mm(sigma, even))


def train(
    task: Task,
    dim: int,
    *,
    key: Array,
    num_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    num_records: int = 20,
) -> Trained:
    """Trains a full layer on fresh prompts with Adam and a learning rate that falls like 1 / t.

    Gradients are not clipped: prompts on which the step overshoots have the largest ones, and a
    clipped mean would end above the best step size.

    Args:
      task: draws prompts of inputs [n, dim].
      dim: d.
      key: of the start and of the prompts; map over keys with jax.vmap for several seeds.
      num_steps, batch_size, learning_rate: of the run.
      num_records: points of the run that are kept.
    Returns:
      A Trained whose params are LayerParams.
    """
    start_key, data_key = jax.random.split(key)
    optimizer = inverse_time_adam(learning_rate, num_steps, half_life=HALF_LIFE)
    return fit(
        _squared_error,
        lambda key: task.sample(key, batch_size),
        init(start_key, dim),
        optimizer,
        key=data_key,
        num_steps=num_steps,
        num_records=num_records,
    )


def _squared_error(params: LayerParams, prompt: Prompt) -> Array:
    return jnp.mean((apply(params, prompt) - prompt.target) ** 2)
