"""Fully connected layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._affine import affine, check_affine, draw, weight_scale
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Network, axes_of, check_axes, with_size


@dataclasses.dataclass(frozen=True)
class DenseLayer(Layer):
    """Description of `Dense`; the arguments are documented there."""

    out_dim: int
    W_std: Any
    b_std: Any
    batch_axis: int
    channel_axis: int
    parameterization: str
    s: tuple[int, int]

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    @property
    def _width(self) -> int:
        return self.out_dim * (self.s[1] if self.parameterization == "standard" else 1)

    def output_shape(self, shape: Any) -> Any:
        """The channels become `out_dim`."""
        axes_of(len(shape), self.batch_axis, self.channel_axis)
        return with_size(shape, self.channel_axis, self._width)

    def init(self, key: jax.Array, shape: Any) -> Any:
        """Weights [channels, out_dim] and biases."""
        channels = shape[self.channel_axis]
        bias = with_size((1,) * len(shape), self.channel_axis, self._width)
        return draw(
            key, (channels, self._width), bias, W_std=self.W_std, b_std=self.b_std,
            parameterization=self.parameterization, fan_in=channels / self.s[0],
        )  # fmt: skip

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """Scaled product with the weights along the channels, plus the bias."""
        del kwargs
        weights, bias = params
        axis = self.channel_axis % inputs.ndim
        outputs = jnp.moveaxis(jnp.tensordot(inputs, weights, ((axis,), (0,))), -1, axis)
        outputs = outputs * weight_scale(
            self.parameterization, self.W_std, weights.shape[0], self.s
        )
        if bias is None:
            return outputs
        return outputs + (bias * self.b_std if self.parameterization == "ntk" else bias)

    def mask(self, mask: jax.Array, shape: Any) -> jax.Array:
        """Masked where every channel is."""
        del shape
        return jnp.all(mask, axis=self.channel_axis, keepdims=True)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """nngp' = W_std^2 nngp + b_std^2 and ntk' = nngp' + W_std^2 ntk."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        return affine(
            kernel,
            kernel,
            W_std=self.W_std,
            b_std=self.b_std,
            parameterization=self.parameterization,
            fan_in=kernel.shape1[self.channel_axis] / self.s[0],
            shape1=with_size(kernel.shape1, self.channel_axis, self._width),
            shape2=with_size(kernel.shape2, self.channel_axis, self._width),
        )


def Dense(
    out_dim: int,
    W_std: Any = 1.0,
    b_std: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Network:
    """Fully connected layer.

    With parameterization "ntk" the finite layer is W_std / sqrt(n) W x + b_std b with standard
    normal W and b; with "standard" it is W x / sqrt(s[0]) + b with W ~ N(0, W_std^2 s[0] / n) and
    b ~ N(0, b_std^2) (arXiv:2001.07301). Here n is the number of input channels.

    Args:
      out_dim: number of outputs, over `s[1]`; irrelevant to an infinite network.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None for none.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
      parameterization: "ntk" or "standard".
      s: width factors of the inputs and of the outputs, for "standard" only.
    """
    check_affine("Dense", parameterization, s, W_std, b_std)
    return as_network(
        DenseLayer(out_dim, W_std, b_std, batch_axis, channel_axis, parameterization, tuple(s))
    )
