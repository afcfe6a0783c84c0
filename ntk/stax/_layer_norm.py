"""Layer normalization."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import plain_residual, spread, variances
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LayerNormLayer(Layer):
    """Description of `LayerNorm`."""

    axis: tuple[int, ...]
    eps: float
    batch_axis: int
    channel_axis: int

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Blocks of a batch have statistics of their own."""
        return self.batch_axis not in self.axis and len(self.axis) == 1

    def output_shape(self, shape: Any) -> Any:
        """The same; the axes must exist."""
        self._axes(len(shape))
        return shape

    def _axes(self, ndim: int) -> tuple[int, ...]:
        if any(not -ndim <= a < ndim for a in self.axis):
            raise ValueError(f"axis={self.axis} are not axes of inputs with {ndim} dimensions.")
        return tuple(a % ndim for a in self.axis)

    def apply(self, params: Any, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
        """Mean 0 and variance 1 along the axes, over what is not masked."""
        del params, kwargs
        axes = self._axes(inputs.ndim)
        if mask is None:
            mean = jnp.mean(inputs, axis=axes, keepdims=True)
            var = jnp.var(inputs, axis=axes, keepdims=True)
        else:
            seen = jnp.broadcast_to(~mask, inputs.shape)
            count = jnp.maximum(jnp.sum(seen, axis=axes, keepdims=True), 1)
            mean = jnp.sum(jnp.where(seen, inputs, 0), axis=axes, keepdims=True) / count
            square = jnp.where(seen, (inputs - mean) ** 2, 0)
            var = jnp.sum(square, axis=axes, keepdims=True) / count
        return (inputs - mean) / jnp.sqrt(var + self.eps)

    def need(self, need: Need) -> Need:
        """Variances."""
        return Need(need.pairs, True, need.own_pairs)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances over the roots of the variances plus eps."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        ndim = len(kernel.shape1)
        batch, channel, spatial = axes_of(ndim, self.batch_axis, self.channel_axis)
        axes = self._axes(ndim)
        if not kernel.is_gaussian:
            raise NotImplementedError(
                "LayerNorm needs mean-zero Gaussian inputs: put Dense or Conv in front of it."
            )
        if channel not in axes:
            raise NotImplementedError(
                f"axis={self.axis} leaves out the channels (axis {channel}); the kernel is known "
                "only for statistics that include them."
            )
        var1, var2 = variances(kernel)
        places = {batch: 0} | {axis: 1 + i for i, axis in enumerate(spatial)}
        over = tuple(places[a] for a in axes if a != channel)

        def scales(var, mask):
            if over:
                if mask is None:
                    mean = jnp.mean(var, axis=over, keepdims=True)
                else:
                    seen = ~jnp.squeeze(jnp.moveaxis(mask, batch, 0), channel + (channel < batch))
                    seen = jnp.broadcast_to(seen, var.shape)
                    count = jnp.maximum(jnp.sum(seen, axis=over, keepdims=True), 1)
                    mean = jnp.sum(jnp.where(seen, var, 0), axis=over, keepdims=True) / count
                var = jnp.broadcast_to(mean, var.shape)
            total = var + jnp.asarray(self.eps, var.dtype)
            return jax.lax.rsqrt(jnp.where(total > 0, total, 1))

        left, right = scales(var1, kernel.mask1), scales(var2, kernel.mask2)

        def pairs(array, a, b, lead, diagonal):
            if array is None or array.ndim == 0:
                return array
            return array * spread(a, 0, lead, diagonal) * spread(b, 1, lead, diagonal)

        outer = 1 if kernel.diagonal_batch else 2
        flat, cov = kernel.diagonal_spatial, kernel.diagonal_cov
        residual = plain_residual(kernel)
        if residual is not None:
            squares = jax.lax.stop_gradient((left**2, right**2))
            residual = pairs(residual, *squares, 2, flat)
        return kernel.replace(
            nngp=pairs(kernel.nngp, left, right, 2, flat),
            ntk=pairs(kernel.ntk, left, right, 2, flat),
            cov1=pairs(kernel.cov1, left, left, outer, cov),
            cov2=pairs(kernel.cov2, right, right, outer, cov),
            residual=residual,
            is_input=False,
        )


def LayerNorm(
    axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1
) -> Network:
    """Normalization to mean 0 and variance 1.

    Args:
      axis: over which statistics are taken; the kernel is known when the channels are among them.
      eps: added to the variance.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    if eps < 0:
        raise ValueError(f"LayerNorm: eps must be >= 0, got {eps}.")
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return as_network(LayerNormLayer(axes, eps, batch_axis, channel_axis))
