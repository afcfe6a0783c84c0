"""What a model is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


class Model(NamedTuple):
    """A network as two pure functions over plain dicts of arrays.

    - `init(key, inputs) -> (params, model_state)`: parameters and, for networks with batch
      statistics, their running averages; else `()`. `inputs` is one batch, of which only shapes are
      used.
    - `apply(params, model_state, inputs, *, train, key) -> (logits, model_state)`. `train` is a
      Python bool. `key` feeds dropout: one key for each example, array [batch], as the loop gives,
      so that numbers do not depend on how many devices share the batch; or a single key, which is
      folded with the example's place in the batch; or None where nothing is random.

    uint8 inputs are images and are scaled to [0, 1]; other inputs are cast to the dtype of the
    parameters, and logits have that dtype too.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Array, PyTree]]


def floats(inputs: Array, dtype: Any) -> Array:
    """Inputs as numbers of `dtype`; uint8 pixels become [0, 1]."""
    inputs = jnp.asarray(inputs)
    if inputs.dtype == jnp.uint8:
        return inputs.astype(dtype) / 255
    return inputs.astype(dtype)


def example_keys(key: Array | None, batch_size: int) -> Array:
    """One key per example, from a key array [batch] or a single key.

    Raises:
      ValueError: dropout needs a key and there is none, or the array has another length.
    """
    if key is None:
        raise ValueError("apply: dropout is on and train=True, so key must be given.")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("apply: key must be a typed key, made by jax.random.key.")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))
    if key.shape != (batch_size,):
        raise ValueError(
            f"apply: key must be one key or one per example, got shape {key.shape} "
            f"for a batch of {batch_size}."
        )
    return key


def dropout(x: Array, rate: float, keys: Array | None, layer: int) -> Array:
    """Zeroes a share `rate` of the entries and scales the rest by 1 / (1 - rate).

    Args:
      x: [batch, ...].
      rate: in [0, 1).
      keys: [batch], or None for no dropout.
      layer: folded into the keys, so that every layer draws its own mask.
    """
    if keys is None or rate == 0:
        return x

    def mask(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(keys), x / (1 - rate), 0)


def check_rate(caller: str, rate: float) -> None:
    """Refuses a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{caller}: dropout must be in [0, 1), got {rate!r}.")


def check_positive(caller: str, **sizes: int) -> None:
    """Refuses sizes that are no positive integer."""
    for name, size in sizes.items():
        if int(size) != size or size < 1:
            raise ValueError(f"{caller}: {name} must be a positive integer, got {size!r}.")
