"""What an objective reads from a batch and what it hands back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Batch = dict[str, Array]
# (params, model_state, inputs, *, train, key) -> (logits, model_state)
ApplyFn = Callable[..., tuple[Array, PyTree]]
# (logits, batch) -> losses of the examples, [batch], or their mean
BaseLoss = Callable[[Array, Batch], Array]


class Outputs(NamedTuple):
    """What an objective computes beside the scalar that is differentiated."""

    logits: Array  # [batch, classes]
    model_state: PyTree  # batch statistics and the like, after this forward pass
    metrics: dict[str, Array]  # scalars, means over this device's share of the batch


def model_inputs(batch: Batch) -> Array:
    """What the model sees of a batch: its "image", or else its "inputs".

    Raises:
      ValueError: the batch holds neither.
    """
    for name in ("image", "inputs"):
        if name in batch:
            return batch[name]
    raise ValueError(f"sam_free: a batch must hold 'image' or 'inputs', got {sorted(batch)}.")


def mean_loss(base_loss: BaseLoss, logits: Array, batch: Batch) -> Array:
    """The base loss as a scalar, whether it was given per example or as a mean."""
    return jnp.mean(base_loss(logits, batch))
