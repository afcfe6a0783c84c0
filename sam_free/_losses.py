"""Base losses of a classification study."""

import jax
import jax.numpy as jnp

from sam_free._batch import Array, BaseLoss, Batch
from sam_free._checks import check_logits


def cross_entropy(logits: Array, batch: Batch) -> Array:
    """Cross-entropy of each example against `batch["label"]`, [batch]."""
    return label_smoothing(0.0)(logits, batch)


def label_smoothing(amount: float) -> BaseLoss:
    """Cross-entropy against (1 - amount) one-hot + amount / classes, for each example.

    Args:
      amount: share of the target that is spread evenly over all classes, in [0, 1).
    Returns:
      `(logits, batch) -> [batch]`.
    Raises:
      ValueError: the amount is outside [0, 1).
    """
    if not 0 <= amount < 1:
        raise ValueError(f"label_smoothing: amount must be in [0, 1), got {amount!r}.")

    def loss(logits: Array, batch: Batch) -> Array:
        check_logits("label_smoothing", logits)
        log_q = jax.nn.log_softmax(logits, axis=-1)
        label = batch["label"].astype(jnp.int32)
        own = jnp.take_along_axis(log_q, label[:, None], axis=-1)[:, 0]
        return -(1 - amount) * own - amount * jnp.mean(log_q, axis=-1)

    return loss
