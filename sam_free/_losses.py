"""Base losses of a classification study."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_free._batch import Array, BaseLoss, Batch
from sam_free._checks import check_logits


def cross_entropy(logits: Array, batch: Batch) -> Array:
    """Cross-entropy of each example against `batch["label"]`, [batch]."""
    return label_smoothing(0.0)(logits, batch)


def label_smoothing(amount: float) -> BaseLoss:
    """Cross-entropy against (1 - amount) one-hot + amount / classes, for each example.

    A label that is no class makes the example's loss NaN (JAX alone counts -1 from the end).

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
        _check_label_dtype(batch["label"])
        log_q = jax.nn.log_softmax(logits, axis=-1)
        label = batch["label"].astype(jnp.int32)
        label = jnp.where(label < 0, logits.shape[-1], label)  # beyond the end: filled with NaN
        own = jnp.take_along_axis(log_q, label[:, None], axis=-1)[:, 0]
        return -(1 - amount) * own - amount * jnp.mean(log_q, axis=-1)

    return loss


def check_labels(batch: Mapping[str, Any], num_classes: int) -> None:
    """Refuses, on the host, class labels [batch] that are outside 0..num_classes - 1."""
    label = np.asarray(batch.get("label", ()))
    if label.ndim != 1:
        return  # not classes of examples
    outside = label[(label < 0) | (label >= num_classes)]
    if outside.size:
        raise ValueError(
            f"sam_free: batch['label'] holds {outside[0]}, outside 0..{num_classes - 1}; the "
            "network has fewer classes than the data, or labels are counted from another base."
        )


def _check_label_dtype(label: Any) -> None:
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(
            f"sam_free: batch['label'] must be whole numbers, got {jnp.result_type(label)}."
        )
