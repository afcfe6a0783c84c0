"""A full layer of multi-head softmax attention on prompts, its training and what it has learned.

The layer answers sum_h O_h V_h Z^T softmax(Z K_h^T Q_h z_q / sqrt(d + 1)) with context rows Z =
(x_i, y_i) and query z_q = (x_q, 0): no position, no bias, and the query does not see itself. With k
outputs y_i has k entries and O_h has k rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from in_context import _check
from in_context._training import Trained, fit, warmup_cosine_adam
from in_context.tasks import Task

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
ACTIVE = 0.05  # a head counts when |mu| is at least this share of the largest


class AttentionParams(NamedTuple):
    """Weights of H heads for tokens of e = d + k features."""

    query: Array  # [H, e, e]
    key: Array  # [H, e, e]
    value: Array  # [H, e, e]
    output: Array  # [H, k, e]


class Decomposition(NamedTuple):
    """Key-query and output-value circuits of every head, and how close they are to the pattern.

    The pattern: key-query omega_h I on the inputs and 0 elsewhere, output-value mu_h on the answer
    and 0 elsewhere. Averages over heads run over the active ones, weighted by |mu_h|: a head with
    mu = 0 is noise.
    """

    key_query: Array  # [H, e, d], logits are z_i^T key_query x_q
    output_value: Array  # [H, k, e]
    omega: Array  # [H], mean of the diagonal of the inputs' block
    mu: Array  # [H, k], the answers' own entries of output_value
    diagonal_energy: Array  # [H], share of key_query's squared entries on that diagonal
    diagonal_spread: Array  # [H], standard deviation over |mean| of that diagonal
    last_entry_energy: Array  # [H], share of output_value's squared entries on the answers
    active: Array  # [H] bool, |mu| at least 5 % of the largest
    weighted_diagonal_energy: Array  # scalar
    weighted_last_entry_energy: Array  # scalar
    mu_imbalance: Array  # scalar, |sum mu| / sum |mu|
    omega_spread: Array  # scalar, (max - min) / mean of |omega| over active heads


def init(key: Array, dim: int, num_heads: int, *, num_outputs: int = 1) -> AttentionParams:
    """Uniform in +-1 / sqrt(fan in), as a torch Linear layer without bias starts."""
    _check.integer("init", dim=dim, num_heads=num_heads, num_outputs=num_outputs)
    features = dim + num_outputs
    keys = jax.random.split(key, 4)

    def uniform(key, shape, fan_in):
        return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    square = (num_heads, features, features)
    query, own, value = (uniform(key, square, features) for key in keys[:3])
    output = uniform(keys[3], (num_heads, num_outputs, features), num_heads * features)
    return AttentionParams(query, own, value, output)


def from_heads(omega: Any, mu: Any, dim: int) -> AttentionParams:
    """The layer that computes `apply_heads(omega, mu, prompt)`, omega [H] or [H, dim, dim]."""
    omega, mu = _check.floating(omega, mu)
    heads, features = omega.shape[0], dim + 1
    _check.shape("from_heads", "mu", mu, (heads,), "like omega")
    if omega.ndim == 1:
        omega = omega[:, None, None] * jnp.eye(dim, dtype=omega.dtype)[None]
    _check.shape("from_heads", "omega", omega, (heads, dim, dim), "[H] or [H, dim, dim]")
    identity = jnp.broadcast_to(jnp.eye(features, dtype=mu.dtype), (heads, features, features))
    inputs = identity.at[:, dim, dim].set(0.0)
    query = jnp.zeros_like(identity).at[:, :dim, :dim].set(omega * features**0.5)
    output = jnp.zeros((heads, 1, features), mu.dtype).at[:, 0, dim].set(mu)
    return AttentionParams(query, inputs, identity, output)


def circuits(params: AttentionParams) -> tuple[Array, Array]:
    """key_query [H, e, d] and output_value [H, k, e] of `Decomposition`."""
    num_outputs, features = params.output.shape[1:]
    asked = params.query[:, :, : features - num_outputs]
    key_query = jnp.einsum("hai,haj->hij", params.key, asked, precision=HIGHEST)
    output_value = jnp.einsum("hka,hai->hki", params.output, params.value, precision=HIGHEST)
    return key_query * features**-0.5, output_value


def apply(params: AttentionParams, prompt: Any) -> Array:
    """The layer's answers to a batch of prompts.

    Args:
      params: of the layer.
      prompt: x [b, n, d], y [b, n] or [b, n, k], query [b, d].
    Returns:
      [b], or [b, k] where y has an axis of outputs.
    """
    x, y, query = prompt[:3]
    z = jnp.concatenate([x, y if y.ndim == x.ndim else y[..., None]], axis=-1)
    key_query, output_value = circuits(params)
    asked = jnp.einsum("hij,bj->bhi", key_query, query)
    attention = jax.nn.softmax(jnp.einsum("bni,bhi->bhn", z, asked))
    values = jnp.einsum("bni,hki->bkhn", z, output_value)
    answers = jnp.sum(values * attention[:, None], axis=(2, 3))
    return answers if y.ndim == x.ndim else answers[:, 0]


def decompose(params: AttentionParams) -> Decomposition:
    """Splits a layer into heads and measures the pattern; see `Decomposition`."""
    key_query, output_value = circuits(params)
    dim = key_query.shape[2]
    diagonal = jnp.diagonal(key_query[:, :dim], axis1=1, axis2=2)
    omega = jnp.mean(diagonal, axis=1)
    mu = jnp.stack(
        [output_value[:, output, dim + output] for output in range(output_value.shape[1])], axis=1
    )
    size = jnp.linalg.norm(mu, axis=1)
    active = size >= ACTIVE * jnp.max(size)
    share = size * active / jnp.sum(size * active)
    diagonal_energy = jnp.sum(diagonal**2, axis=1) / jnp.sum(key_query**2, axis=(1, 2))
    answers = output_value[:, :, dim:]
    last = jnp.sum(answers**2, axis=(1, 2)) / jnp.sum(output_value**2, axis=(1, 2))
    magnitude = jnp.abs(omega)
    spread = jnp.max(jnp.where(active, magnitude, -jnp.inf)) - jnp.min(
        jnp.where(active, magnitude, jnp.inf)
    )
    return Decomposition(
        key_query=key_query,
        output_value=output_value,
        omega=omega,
        mu=mu,
        diagonal_energy=diagonal_energy,
        diagonal_spread=jnp.std(diagonal, axis=1) / magnitude,
        last_entry_energy=last,
        active=active,
        weighted_diagonal_energy=jnp.sum(share * diagonal_energy),
        weighted_last_entry_energy=jnp.sum(share * last),
        mu_imbalance=jnp.max(jnp.abs(jnp.sum(mu, axis=0)) / jnp.sum(jnp.abs(mu), axis=0)),
        omega_spread=spread / (jnp.sum(magnitude * active) / jnp.sum(active)),
    )


def train(
    task: Task,
    dim: int,
    *,
    num_heads: int,
    key: Array,
    num_outputs: int = 1,
    num_steps: int = 20_000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    num_records: int = 20,
) -> Trained:
    """Trains a layer on fresh prompts with Adam and cosine decay.

    Heads of one sign can hold opposite errors that cancel in their sum, and the loss does not ask
    them to give these up. With more than two heads a little weight decay does: each head then
    shows the pattern by itself.

    Args:
      task: draws prompts of inputs [n, dim] with `num_outputs` answers.
      dim, num_heads, num_outputs: of the layer.
      key: of the start and of the prompts; map over keys with jax.vmap for several seeds.
      num_steps, batch_size, learning_rate: of the run.
      weight_decay: decoupled, times the learning rate (AdamW).
      num_records: points of the run that are kept, evenly spaced.
    Returns:
      A Trained whose params are AttentionParams.
    """
    start_key, data_key = jax.random.split(key)
    return fit(
        squared_error,
        lambda key: task.sample(key, batch_size),
        init(start_key, dim, num_heads, num_outputs=num_outputs),
        warmup_cosine_adam(learning_rate, num_steps, weight_decay=weight_decay),
        key=data_key,
        num_steps=num_steps,
        num_records=num_records,
    )


def squared_error(params: AttentionParams, prompt: Any) -> Array:
    """Mean squared error of the layer over a batch of prompts (and their outputs)."""
    return jnp.mean((apply(params, prompt) - prompt.target) ** 2)
