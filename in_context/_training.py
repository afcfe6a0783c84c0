"""A compact trainer for the small models of this package: many steps in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from in_context import _check

Array = jax.Array
PyTree = Any


class Trained(NamedTuple):
    """Where training ended and what it passed."""

    params: PyTree
    losses: Array  # [records], means over the steps of each record
    steps: Array  # [records], updates done at each record
    trajectory: PyTree  # params at each record, leading axis [records]


def fit(
    loss: Callable[[PyTree, Any], Array],
    sample: Callable[[Array], Any],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: Array,
    num_steps: int,
    num_records: int = 20,
) -> Trained:
    """Minimises E loss(params, sample(key)); may be called inside jit and vmap.

    Args:
      loss: scalar loss of a batch.
      sample: draws a fresh batch from a key.
      params: the start.
      optimizer: any optax transformation.
      key: of the batches.
      num_steps: updates; rounded up to a multiple of num_records.
      num_records: how many points of the run are kept.
    """
    _check.integer("fit", num_steps=num_steps, num_records=num_records)
    inner = -(-num_steps // num_records)

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, sample(key))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    def record(carry, key):
        carry, values = jax.lax.scan(step, carry, jax.random.split(key, inner))
        return carry, (jnp.mean(values), carry[0])

    keys = jax.random.split(key, num_records)
    (params, _), (losses, trajectory) = jax.lax.scan(record, (params, optimizer.init(params)), keys)
    return Trained(params, losses, inner * (1 + jnp.arange(num_records)), trajectory)


def warmup_cosine_adam(
    learning_rate: float, num_steps: int, *, warmup_steps: int = 0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam with a linear warmup, a cosine decay to 0 and, where asked, decoupled weight decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        learning_rate if warmup_steps == 0 else 0.0, learning_rate, warmup_steps, num_steps
    )
    if weight_decay == 0.0:
        return optax.adam(schedule)
    return optax.adamw(schedule, weight_decay=weight_decay)


def inverse_time_adam(
    learning_rate: float, num_steps: int, *, half_life: int
) -> optax.GradientTransformation:
    """Adam whose learning rate falls like 1 / (half_life + step), and to 0 at num_steps.

    A rate of order 1 / t averages the noise of all gradients so far, where a cosine keeps what the
    last few hundred batches say.
    """

    def schedule(step):
        return learning_rate * half_life / (half_life + step) * (1 - step / num_steps)

    return optax.adam(schedule)
