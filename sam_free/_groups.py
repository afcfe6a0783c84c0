"""Groups of m consecutive examples of the global batch, on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sam_free._batch import Batch, PyTree


def batch_size(batch: Batch) -> int:
    """Number of examples of this device's share."""
    return jax.tree.leaves(batch)[0].shape[0]


def group_mean(tree: PyTree, batch: Batch, group_size: int | None, axis_name: str | None) -> PyTree:
    """Mean over the devices that share a group; the tree itself where a device holds the group."""
    if axis_name is None:
        return tree
    if group_size is None:
        return jax.lax.pmean(tree, axis_name)
    members = group_size // batch_size(batch)
    if members <= 1:
        return tree
    devices = jax.lax.axis_size(axis_name)
    if devices % members:
        raise ValueError(
            f"sam_free: group_size={group_size} makes groups of {members} devices, which do not "
            f"divide the {devices} devices; choose a divisor of the global batch."
        )

    # A reduction over part of an axis by exchange in a ring: works in every kind of mapping.
    def one_step(total: PyTree, shift: int) -> PyTree:
        ring = [
            (source, source - source % members + (source + shift) % members)
            for source in range(devices)
        ]
        moved = jax.lax.ppermute(tree, axis_name, ring)
        return jax.tree.map(jnp.add, total, moved)

    total = tree
    for shift in range(1, members):
        total = one_step(total, shift)
    return jax.tree.map(lambda leaf: leaf / members, total)


def map_groups(rule: Callable[..., Any], group_size: int | None) -> Callable[..., Any]:
    """A gradient rule that runs for each group in turn and averages what it gets.

    Args:
      rule: `(params, batch, group_size) -> ((loss, aux), grads)`.
      group_size: examples of a group; None: the whole global batch is one.
    Returns:
      `(params, batch) -> ((loss, aux), grads)`.
    """

    def mapped(params: PyTree, batch: Batch):
        size = batch_size(batch)
        if group_size is None or group_size % size == 0:
            return rule(params, batch, group_size)
        if size % group_size:
            raise ValueError(
                f"sam_free: group_size={group_size} must divide a device's share of the batch, "
                f"{size} examples, or be a multiple of it."
            )
        count = size // group_size
        groups = jax.tree.map(lambda x: x.reshape(count, group_size, *x.shape[1:]), batch)
        (losses, aux), grads = jax.lax.map(lambda part: rule(params, part, group_size), groups)
        return (jnp.mean(losses), _merge(aux)), _mean(grads)

    return mapped


def _mean(tree: PyTree) -> PyTree:
    """Mean over the groups; whole numbers, which count passes, from the last group."""
    return jax.tree.map(
        lambda x: jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[-1], tree
    )


def _merge(aux: Any) -> Any:
    """What stands beside the loss: outputs of all examples, means of everything else."""
    if not hasattr(aux, "_replace") or not hasattr(aux, "logits"):
        return _mean(aux)
    logits = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), aux.logits)
    return jax.tree.map(lambda x: x, aux)._replace(
        logits=logits, model_state=_mean(aux.model_state), metrics=_mean(aux.metrics)
    )
