"""Resizing of images: a matrix along each spatial axis."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import map_covariances
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes
from ntk.stax._pool import pairs_if_read

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ImageResizeLayer(Layer):
    """Description of `ImageResize`."""

    shape: tuple[int, ...]
    method: Any
    antialias: bool
    precision: Any
    batch_axis: int
    channel_axis: int

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Any) -> Any:
        """Sizes of `shape`, the input's where it says -1."""
        if len(shape) != len(self.shape):
            raise ValueError(
                f"shape={self.shape} has {len(self.shape)} entries, the inputs {len(shape)} axes; "
                "write -1 for every axis that stays."
            )
        return tuple(old if new == -1 else new for old, new in zip(shape, self.shape))

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """jax.image.resize."""
        del params, kwargs
        return jax.image.resize(
            inputs, self.output_shape(inputs.shape), self.method, self.antialias, self.precision
        )

    def _matrices(self, shape: Any, dtype: Any) -> list[tuple[int, Array]]:
        _, _, spatial = axes_of(len(shape), self.batch_axis, self.channel_axis)
        out = []
        for slot, axis in enumerate(spatial):
            new, old = self.output_shape(shape)[axis], shape[axis]
            if new != old:
                eye = jnp.eye(old, dtype=dtype)
                matrix = jax.image.resize(eye, (new, old), self.method, self.antialias)
                out.append((slot, matrix))
        return out

    def mask(self, mask: Array, shape: Any) -> Array:
        """Masked where everything that an entry reads is masked."""
        _, _, spatial = axes_of(len(shape), self.batch_axis, self.channel_axis)
        keep = (~mask).astype(jnp.float32)
        for slot, matrix in self._matrices(shape, jnp.float32):
            axis = spatial[slot]
            keep = jnp.moveaxis(jnp.tensordot(jnp.abs(matrix), keep, ((1,), (axis,))), 0, axis)
        return keep == 0

    def need(self, need: Need) -> Need:
        """Covariances of neighbours."""
        return pairs_if_read(need)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The matrices, on both positions of every pair."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        channel = self.channel_axis % len(kernel.shape1)
        batch = self.batch_axis % len(kernel.shape1)
        out_shape = self.output_shape(kernel.shape1)
        if any(out_shape[a] != kernel.shape1[a] for a in (channel, batch)):
            raise NotImplementedError(
                f"shape={self.shape} resizes the batch or the channels; write -1 there."
            )
        matrices = self._matrices(kernel.shape1, kernel.nngp.dtype)

        def resized(array, lead, diagonal):
            del diagonal
            for slot, matrix in matrices:
                for axis in (lead + 2 * slot, lead + 2 * slot + 1):
                    array = jnp.tensordot(matrix, array, ((1,), (axis,)), precision="highest")
                    array = jnp.moveaxis(array, 0, axis)
            return array

        return map_covariances(
            kernel, resized, mixes=True, is_input=False, shape1=out_shape,
            shape2=self.output_shape(kernel.shape2),
            mask1=None if kernel.mask1 is None else self.mask(kernel.mask1, kernel.shape1),
            mask2=None if kernel.mask2 is None else self.mask(kernel.mask2, kernel.shape2),
        )  # fmt: skip


def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = jax.lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """jax.image.resize.

    Args:
      shape: of the outputs, all axes; -1 keeps an axis as it is.
      method: any of jax.image.resize, all of which are linear in the image.
      antialias: as in jax.image.resize.
      precision: of the finite layer's products.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    if any(n < 1 and n != -1 for n in shape):
        raise ValueError(f"ImageResize: sizes must be positive or -1, got {tuple(shape)}.")
    return as_network(
        ImageResizeLayer(tuple(shape), method, antialias, precision, batch_axis, channel_axis)
    )
