"""Indexing: crops, strides, reversals, single rows."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ntk._kernel import Kernel
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Network, axes_of, check_axes


class _Slicer:
    """`Slice[1:10, ::2]` is the index that `x[1:10, ::2]` uses."""

    def __getitem__(self, index: Any) -> Any:
        return index


Slice = _Slicer()
ALL = slice(None)


def check_index(name: str, idx: tuple[Any, ...]) -> None:
    """Raises when an index holds anything but integers, slices and '...'."""
    for part in idx:
        if not (part is Ellipsis or isinstance(part, (slice, int, np.integer))):
            raise ValueError(f"{name}: idx may hold integers, slices and '...', got {part!r}.")


def _full(idx: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """One entry per axis."""
    dots = [i for i, part in enumerate(idx) if part is Ellipsis]
    if len(dots) > 1:
        raise ValueError(f"idx={idx} holds more than one '...'.")
    given = len(idx) - len(dots)
    if given > ndim:
        raise ValueError(f"idx={idx} has {given} entries, the inputs {ndim} axes.")
    rest = (ALL,) * (ndim - given)
    if not dots:
        return idx + rest
    return idx[: dots[0]] + rest + idx[dots[0] + 1 :]


def indexed_shape(shape: Any, idx: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of an indexed array; axes of unknown size stay."""
    out = []
    for size, part in zip(shape, _full(idx, len(shape))):
        if part == ALL:
            out.append(size)
        elif size is None or size < 0:
            raise ValueError(f"an axis of unknown size cannot be indexed by {part}.")
        elif isinstance(part, slice):
            out.append(len(range(*part.indices(size))))
        elif not -size <= part < size:
            raise ValueError(f"index {part} is out of range for an axis of {size}.")
    return tuple(out)


def _indexed_mask(mask: Any, shape: Any, idx: tuple[Any, ...]) -> Any:
    full = _full(idx, len(shape))
    return mask[tuple(ALL if mask.shape[a] == 1 != shape[a] else p for a, p in enumerate(full))]


def index_kernel(kernel: Kernel, idx: tuple[Any, ...]) -> Kernel:
    """The kernel of outputs indexed by `idx`.

    Raises:
      NotImplementedError: `idx` touches the channels or removes the batch.
    """
    ndim = len(kernel.shape1)
    batch, channel, spatial = axes_of(ndim, kernel.batch_axis, kernel.channel_axis)
    full = _full(idx, ndim)
    if full[channel] != ALL:
        raise NotImplementedError(
            f"idx={idx} indexes the channels (axis {channel}), which are infinitely many."
        )
    if not isinstance(full[batch], slice):
        raise NotImplementedError(
            f"idx={idx} removes the batch axis; use a slice of length 1 for it."
        )
    part = full[batch]

    def taken(array, outer, diagonal):
        if array is None or array.ndim == 0:
            return array
        width = 1 if diagonal else 2
        inner = tuple(full[a] for a in spatial for _ in range(width))
        return array[(part,) * outer + inner]

    def masked(mask, shape):
        return None if mask is None else _indexed_mask(mask, shape, idx)

    outer = 1 if kernel.diagonal_batch else 2
    gone = [a for a in spatial if not isinstance(full[a], slice)]
    flat, cov = kernel.diagonal_spatial, kernel.diagonal_cov
    left = len(spatial) - len(gone)
    return kernel.replace(
        nngp=taken(kernel.nngp, 2, flat),
        ntk=taken(kernel.ntk, 2, flat),
        residual=jax.tree.map(lambda r: taken(r, 2, flat), kernel.residual),
        same=None if kernel.same is None else kernel.same[part, part],
        cov1=taken(kernel.cov1, outer, cov),
        cov2=taken(kernel.cov2, outer, cov),
        mask1=masked(kernel.mask1, kernel.shape1),
        mask2=masked(kernel.mask2, kernel.shape2),
        diagonal_spatial=flat and left > 0,
        diagonal_cov=cov and left > 0,
        shape1=indexed_shape(kernel.shape1, idx),
        shape2=indexed_shape(kernel.shape2, idx),
        batch_axis=batch - sum(a < batch for a in gone),
        channel_axis=channel - sum(a < channel for a in gone),
        is_input=False,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class IndexLayer(Layer):
    """Description of `Index`."""

    idx: tuple[Any, ...]
    batch_axis: int
    channel_axis: int
    repeatable = False

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Any) -> Any:
        """What NumPy gives."""
        return indexed_shape(shape, self.idx)

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The inputs, indexed."""
        del params, kwargs
        self.output_shape(inputs.shape)
        return inputs[self.idx]

    def mask(self, mask: Any, shape: Any) -> Any:
        """The mask, indexed, its single channel kept."""
        return _indexed_mask(mask, shape, self.idx)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Both members of every pair, indexed."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        return index_kernel(kernel, self.idx)


def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Network:
    """Indexes the inputs as NumPy does; `Slice` makes the index.

    Args:
      idx: integers, slices and `...`, as `Slice[::2, 0]` gives them.
      batch_axis: of the inputs; it may be sliced.
      channel_axis: of the inputs; it may not be indexed in a kernel.
    """
    parts = idx if isinstance(idx, tuple) else (idx,)
    check_index("Index", parts)
    return as_network(IndexLayer(parts, batch_axis, channel_axis))
