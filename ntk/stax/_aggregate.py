"""Sums over the neighbours in a graph: `Aggregate`."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import map_covariances, spatial_shape
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes
from ntk.stax._pool import pairs_if_read

Array = jax.Array


class AggregateImplementation(enum.Enum):
    """How a graph is given: as matrices or as lists of edges."""

    DENSE = "DENSE"
    SPARSE = "SPARSE"


def dense_pattern(edges: Array, sizes: Sequence[int]) -> Array:
    """Adjacency [N, X..., X...] from edges [N, E, K, 2] of tails and heads.

    Args:
      edges: integers; an edge with a negative head is left out.
      sizes: of the K axes.
    """
    if edges.ndim == 3:
        edges = edges[:, :, None, :]
    total = 1
    strides = []
    for size in reversed(tuple(sizes)):
        strides.insert(0, total)
        total *= size
    weights = jnp.asarray(strides, edges.dtype).reshape(1, 1, -1)
    tails = jnp.sum(edges[..., 0] * weights, axis=-1)
    heads = jnp.sum(edges[..., 1] * weights, axis=-1)
    heads = jnp.where(jnp.any(edges[..., 1] < 0, axis=-1), total, heads)

    def one(tail, head):
        return jnp.zeros((total, total)).at[tail, head].add(1.0, mode="drop")

    dense = jax.vmap(one)(tails, heads)
    return dense.reshape((edges.shape[0],) + tuple(sizes) * 2)


@dataclasses.dataclass(frozen=True, eq=False)
class AggregateLayer(Layer):
    """Description of `Aggregate`."""

    aggregate_axis: tuple[int, ...] | None
    batch_axis: int
    channel_axis: int
    to_dense: Callable[[Array], Array] | None
    implementation: AggregateImplementation

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def _axes(self, ndim: int) -> tuple[int, ...]:
        batch, channel, spatial = axes_of(ndim, self.batch_axis, self.channel_axis)
        if self.aggregate_axis is None:
            return spatial
        axes = tuple(a % ndim for a in self.aggregate_axis)
        if batch in axes or channel in axes:
            raise ValueError(
                f"aggregate_axis={self.aggregate_axis} must be neither the batch axis {batch} nor "
                f"the channel axis {channel}."
            )
        return axes

    def _matrix(self, pattern: Array, sizes: Sequence[int]) -> Array:
        """Adjacency as [N, vertices, vertices]."""
        if self.implementation is AggregateImplementation.SPARSE:
            pattern = dense_pattern(jnp.asarray(pattern), sizes)
        elif self.to_dense is not None:
            pattern = self.to_dense(pattern)
        total = 1
        for size in sizes:
            total *= size
        expected = tuple(sizes) * 2
        if tuple(pattern.shape[1:]) != expected:
            raise ValueError(
                f"pattern has shape {pattern.shape}; behind the batch it must be {expected}."
            )
        return pattern.reshape(pattern.shape[0], total, total)

    def apply(self, params: Any, inputs: Any, pattern: Any = None, **kwargs: Any) -> Any:
        """Replaces every vertex by the weighted sum of its predecessors."""
        del params, kwargs
        if pattern is None:
            return inputs
        axes = self._axes(inputs.ndim)
        batch, _, _ = axes_of(inputs.ndim, self.batch_axis, self.channel_axis)
        rest = [a for a in range(inputs.ndim) if a != batch and a not in axes]
        order = [batch, *axes, *rest]
        moved = inputs.transpose(order)
        sizes = [inputs.shape[a] for a in axes]
        flat = moved.reshape((moved.shape[0], -1) + moved.shape[1 + len(axes) :])
        matrix = self._matrix(pattern, sizes).astype(inputs.dtype)
        out = jnp.einsum("npq,np...->nq...", matrix, flat).reshape(moved.shape)
        return out.transpose([order.index(a) for a in range(inputs.ndim)])

    def need(self, need: Need) -> Need:
        """All pairs of vertices."""
        return pairs_if_read(need)

    def kernel(self, kernel: Kernel, pattern: Any = None, **kwargs: Any) -> Kernel:
        """K[n1, n2] becomes A1[n1]^T K[n1, n2] A2[n2]."""
        del kwargs
        if pattern is None:
            return kernel
        check_axes(kernel, self.batch_axis, self.channel_axis)
        same = None  # equal inputs on different graphs are not equal any more
        if isinstance(pattern, (tuple, list)):
            first, second = pattern
            first = second if first is None else first
            second = first if second is None else second
        else:
            first = second = pattern
            if kernel.x1_is_x2 and kernel.same is not None:
                same = kernel.same & jnp.eye(*kernel.same.shape, dtype=bool)
        # Checks that there are pairs, and drops variances that nobody reads.
        kernel = map_covariances(kernel, lambda array, lead, diagonal: array, mixes=True)
        ndim = len(kernel.shape1)
        _, _, spatial = axes_of(ndim, self.batch_axis, self.channel_axis)
        slots = [spatial.index(a) for a in self._axes(ndim)]
        sizes = [spatial_shape(kernel)[s] for s in slots]
        dtype = kernel.nngp.dtype
        a1 = self._matrix(jnp.asarray(first), sizes).astype(dtype)
        a2 = self._matrix(jnp.asarray(second), sizes).astype(dtype)

        def aggregated(array, lead, left, right):
            if array is None or array.ndim == 0:
                return array
            one = [lead + 2 * s for s in slots]
            two = [lead + 2 * s + 1 for s in slots]
            rest = [a for a in range(lead, array.ndim) if a not in one + two]
            order = list(range(lead)) + one + two + rest
            moved = array.transpose(order)
            k = len(slots)
            shape = moved.shape
            vertices = left.shape[1]
            flat = moved.reshape(shape[:lead] + (vertices, vertices) + shape[lead + 2 * k :])
            rule = "apq,bst,abps...->abqt..." if lead == 2 else "apq,ast,aps...->aqt..."
            flat = jnp.einsum(rule, left, right, flat, precision="highest")
            return flat.reshape(shape).transpose([order.index(a) for a in range(array.ndim)])

        outer = 1 if kernel.diagonal_batch else 2
        return kernel.replace(
            nngp=aggregated(kernel.nngp, 2, a1, a2),
            ntk=aggregated(kernel.ntk, 2, a1, a2),
            cov1=aggregated(kernel.cov1, outer, a1, a1),
            cov2=aggregated(kernel.cov2, outer, a2, a2),
            residual=None,
            same=same,
            is_input=False,
        )


def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Array], Array] | None = None,
    implementation: Any = "DENSE",
) -> Network:
    """Sums over the neighbours in a graph that comes with every input, as `pattern=`.

    Args:
      aggregate_axis: the axes whose positions are vertices; None for all spatial axes.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
      to_dense: maps patterns to adjacency matrices before use, with "DENSE".
      implementation: "DENSE" for patterns [N, X..., X...] of weights from tail to head, "SPARSE"
        for edges [N, E, K, 2].
    """
    name = getattr(implementation, "value", implementation)
    if name not in ("DENSE", "SPARSE"):
        raise ValueError(f"Aggregate: implementation must be 'DENSE' or 'SPARSE', got {name!r}.")
    axes = (aggregate_axis,) if isinstance(aggregate_axis, int) else aggregate_axis
    return as_network(
        AggregateLayer(
            None if axes is None else tuple(axes),
            batch_axis,
            channel_axis,
            to_dense,
            AggregateImplementation(name),
        )
    )
