"""What a layer is: a small immutable description, and the triple of functions that users hold."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Need:
    """What the rest of a network reads from a layer's output; the plan passes it backward.

    Attributes:
      pairs: covariances of different positions in `nngp` and `ntk`.
      own: anything of `cov1` and `cov2`.
      own_pairs: covariances of different positions in `cov1` and `cov2`.
    """

    pairs: bool = False
    own: bool = False
    own_pairs: bool = False

    def join(self, other: "Need") -> "Need":
        """What either of two readers needs."""
        return Need(
            self.pairs or other.pairs, self.own or other.own, self.own_pairs or other.own_pairs
        )


class MaskedArray(NamedTuple):
    """Values and the places (True) to be left out of them."""

    masked_value: jax.Array
    mask: jax.Array | None


class Layer:
    """A description of a layer. Subclasses are frozen dataclasses of its hyperparameters.

    A new layer says how shapes change, how parameters are drawn, what it computes at finite width,
    how a Kernel passes through it, and, where it mixes positions, what it needs of its input.
    """

    #: whether the outputs on one input depend on other inputs of the batch
    mixes_batch = False
    #: whether kernels depend on widths or on which inputs are the same array
    repeatable = True

    @property
    def name(self) -> str:
        """What error messages call the layer."""
        return type(self).__name__.removesuffix("Layer")

    def output_shape(self, shape: Any) -> Any:
        """Shape of the outputs; -1 stands for an unknown batch."""
        return shape

    def init(self, key: jax.Array, shape: Any) -> Any:
        """Parameters for inputs of the given shape."""
        del key, shape
        return ()

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The finite-width layer."""
        raise NotImplementedError(f"{self.name} has no finite-width network.")

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The kernel of the outputs, given that of the inputs."""
        raise NotImplementedError(f"{self.name} has no infinite-width kernel.")

    def need(self, need: Need) -> Need:
        """What is needed of the inputs, given what is needed of the outputs."""
        return need

    def mask(self, mask: jax.Array, shape: Shape) -> jax.Array | None:
        """The mask of the outputs, given that of inputs of the given shape."""
        del shape
        return mask


class Network(NamedTuple):
    """The triple `(init_fn, apply_fn, kernel_fn)`; `kernel_fn.layer` is its description."""

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]
    kernel_fn: Callable[..., Any]


@contextmanager
def position(label: str) -> Iterator[None]:
    """Puts the position of a layer in front of the errors that it raises."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        if type(error) not in (ValueError, TypeError, NotImplementedError):
            raise  # a subclass of JAX's own; its constructor takes other arguments
        raise type(error)(f"{label}: {error}") from error


def masked(inputs: Any, mask_constant: Any) -> MaskedArray:
    """Splits inputs into values, zero where masked, and the mask."""
    if isinstance(inputs, MaskedArray):
        return inputs
    if mask_constant is None:
        return MaskedArray(inputs, None)
    hidden = jnp.isnan(inputs) if _is_nan(mask_constant) else inputs == mask_constant
    return MaskedArray(jnp.where(hidden, jnp.zeros((), inputs.dtype), inputs), hidden)


def _is_nan(constant: Any) -> bool:
    return bool(constant != constant)


def apply_layer(layer: Layer, params: Any, inputs: Any, mask_constant: Any, kwargs: Any) -> Any:
    """Runs a finite layer on arrays or masked arrays, and masks its outputs."""
    if isinstance(inputs, (list, tuple)) and not isinstance(inputs, MaskedArray):
        pairs = [masked(x, mask_constant) for x in inputs]
        values: Any = [pair.masked_value for pair in pairs]
        hidden: Any = [pair.mask for pair in pairs]
        if all(mask is None for mask in hidden):
            return layer.apply(params, values, **kwargs)
        shapes: Any = [value.shape for value in values]
    else:
        values, hidden = masked(inputs, mask_constant)
        if hidden is None:
            return layer.apply(params, values, **kwargs)
        shapes = values.shape
    outputs = layer.apply(params, values, mask=hidden, **kwargs)
    if isinstance(outputs, MaskedArray):  # of a network, which masked its own layers
        return outputs
    out_mask = layer.mask(hidden, shapes)
    if isinstance(outputs, list):
        return [MaskedArray(o, m) for o, m in zip(outputs, out_mask or [None] * len(outputs))]
    if out_mask is None:
        return outputs
    out_mask = jnp.broadcast_to(out_mask, outputs.shape)
    return MaskedArray(jnp.where(out_mask, jnp.zeros((), outputs.dtype), outputs), out_mask)


def axes_of(ndim: int, batch_axis: int, channel_axis: int) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channel and the remaining axes, counted from the front."""
    if not (-ndim <= batch_axis < ndim and -ndim <= channel_axis < ndim):
        raise ValueError(
            f"batch_axis={batch_axis} and channel_axis={channel_axis} must be axes of inputs "
            f"with {ndim} dimensions."
        )
    batch, channel = batch_axis % ndim, channel_axis % ndim
    if batch == channel:
        raise ValueError(f"batch_axis and channel_axis are both {batch}; they must differ.")
    return batch, channel, tuple(a for a in range(ndim) if a not in (batch, channel))


def check_axes(kernel: Kernel, batch_axis: int, channel_axis: int) -> None:
    """Raises when a layer's axes are not those of the kernel that it is given."""
    ndim = len(kernel.shape1)
    batch, channel, _ = axes_of(ndim, batch_axis, channel_axis)
    if (batch, channel) != (kernel.batch_axis % ndim, kernel.channel_axis % ndim):
        raise ValueError(
            f"batch_axis={batch_axis} and channel_axis={channel_axis} of the layer do not name the "
            f"axes of its inputs, {kernel.batch_axis} and {kernel.channel_axis} of a shape "
            f"{kernel.shape1}; give the layer the axes of its inputs."
        )


def with_size(shape: Shape, axis: int, size: int) -> Shape:
    """`shape` with one entry replaced."""
    axis %= len(shape)
    return tuple(shape[:axis]) + (size,) + tuple(shape[axis + 1 :])
