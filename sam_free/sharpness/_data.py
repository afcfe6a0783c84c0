"""A data set as stacks of equal batches, and means over it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array
PyTree = Any
LossFn = Callable[[PyTree, Any], Any]
# One entry per shape of batch: the batches stacked, and the number of examples in each, [stack].
Data = tuple[tuple[PyTree, Array], ...]


def gather_data(
    batches: Iterable[PyTree] | Mapping[str, Any],
    *,
    devices: Sequence[Any] | None = None,
) -> Data:
    """Stacks batches of equal shape, so that one compiled scan goes over all of them.

    Args:
      batches: batches as `loss_fn` takes them, each a tree of arrays with a leading axis of
        examples; or one such batch. A "mask" in a batch marks the examples that count, and
        `loss_fn` must take its mean over those.
      devices: spread the examples of each batch over these, where their number divides it.
    Returns:
      The stacks, with the number of examples in each batch.
    Raises:
      ValueError: there is no batch, or a batch has no examples.
    """
    if isinstance(batches, Mapping):
        batches = [batches]
    groups: dict[Any, list[PyTree]] = {}
    for batch in batches:
        leaves, structure = jax.tree.flatten(batch)
        if not leaves or min(jnp.ndim(leaf) for leaf in leaves) == 0 or not len(leaves[0]):
            raise ValueError("sharpness: a batch must be arrays [examples, ...] with examples.")
        shapes = tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)
        groups.setdefault((structure, shapes), []).append(batch)
    if not groups:
        raise ValueError("sharpness: batches is empty; pass at least one batch of examples.")
    data = []
    for parts in groups.values():
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        if devices is not None:
            stack = spread(stack, devices)
        count, size = jax.tree.leaves(stack)[0].shape[:2]
        weights = jnp.full((count,), size, float)
        if isinstance(stack, Mapping) and "mask" in stack:
            weights = jnp.sum(stack["mask"].astype(float), axis=1)
        data.append((stack, weights))
    return tuple(data)


def spread(stack: PyTree, devices: Sequence[Any]) -> PyTree:
    """Stacked batches, with the examples of each split over devices where the number allows."""
    mesh = Mesh(np.asarray(devices), ("data",))
    size = jax.tree.leaves(stack)[0].shape[1]
    split = PartitionSpec(None, "data") if size % len(devices) == 0 else PartitionSpec()
    return jax.device_put(stack, NamedSharding(mesh, split))


def average(function: Callable[[PyTree], PyTree], data: Data) -> PyTree:
    """Mean of `function(batch)` over the data, each batch weighted by its examples."""
    whole = sum(jnp.sum(weights) for _, weights in data)
    total = None
    for stack, weights in data:
        shares = weights / whole

        def add(sum_so_far: PyTree, part: tuple[PyTree, Array]) -> tuple[PyTree, None]:
            batch, share = part
            value = function(batch)
            return jax.tree.map(lambda a, b: a + share.astype(b.dtype) * b, sum_so_far, value), None

        if total is None:
            first = jax.tree.map(lambda x: x[0], stack)
            shapes = jax.eval_shape(function, first)
            total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, total, (stack, shares))
    return total


def scalar(loss_fn: LossFn) -> Callable[[PyTree, PyTree], Array]:
    """The loss alone, of a function that returns it with or without something beside it."""

    def loss(params: PyTree, batch: PyTree) -> Array:
        value = loss_fn(params, batch)
        return value[0] if isinstance(value, tuple) else value

    return loss


def mean_loss(loss_fn: LossFn, params: PyTree, data: Data) -> Array:
    """Mean loss over gathered data."""
    return average(lambda batch: scalar(loss_fn)(params, batch), data)


def mean_gradient(loss_fn: LossFn, params: PyTree, data: Data) -> PyTree:
    """Gradient of the mean loss over gathered data."""
    return average(lambda batch: jax.grad(scalar(loss_fn))(params, batch), data)
