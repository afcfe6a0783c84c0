"""Convolutions: shared, transposed, and local (unshared) filters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ntk._kernel import Kernel
from ntk.stax._affine import affine, check_affine, draw, weight_scale
from ntk.stax._covariance import equal_positions, map_covariances
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Network, check_axes
from ntk.stax._window import (
    Padding,
    Window,
    forward_window,
    pair_windows,
    parse_padding,
    shifted,
    transposed_window,
    window_sum,
)

Array = jax.Array
Spec = tuple[str, str, str]


def default_spec(count: int) -> Spec:
    """Batch first and channels last, with up to any number of spatial axes."""
    letters = "HWDXYZABEFG"[:count] if count <= 11 else ""
    if not letters:
        raise ValueError(f"filter_shape has {count} axes; at most 11 are supported.")
    return "N" + letters + "C", letters + "IO", "N" + letters + "C"


@dataclasses.dataclass(frozen=True)
class ConvLayer(Layer):
    """Description of `Conv`, `ConvTranspose` and `ConvLocal`."""

    kind: str
    out_chan: int
    filter_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    W_std: Any
    b_std: Any
    spec: Spec
    parameterization: str
    s: tuple[int, int]
    dilation: tuple[int, ...]
    groups: int

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.kind

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.spec[0].index("N"), self.spec[0].index("C")

    @property
    def _width(self) -> int:
        return self.out_chan * (self.s[1] if self.parameterization == "standard" else 1)

    @property
    def _letters(self) -> str:
        """Spatial letters in the order of the filter."""
        return "".join(c for c in self.spec[1] if c not in "IO")

    def _check_rank(self, ndim: int) -> None:
        if ndim != len(self.spec[0]):
            raise ValueError(
                f"inputs have {ndim} dimensions, but a filter of shape {self.filter_shape} with "
                f"dimension_numbers {self.spec} needs {len(self.spec[0])} ({self.spec[0]})."
            )

    def windows(self, shape: Any) -> dict[str, Window]:
        """The window along each spatial letter."""
        self._check_rank(len(shape))
        out = {}
        for i, letter in enumerate(self._letters):
            length = shape[self.spec[0].index(letter)]
            args = (length, self.filter_shape[i], self.strides[i])
            if self.kind == "ConvTranspose":
                out[letter] = transposed_window(*args, self.padding)
            else:
                out[letter] = forward_window(*args, self.dilation[i], self.padding)
        return out

    def output_shape(self, shape: Any) -> Any:
        """Spatial sizes after the windows, `out_chan` channels, in the order of the output."""
        windows = self.windows(shape)
        sizes = {letter: window.out for letter, window in windows.items()}
        channels = shape[self.spec[0].index("C")]
        if channels > 0 and channels % self.groups:
            raise ValueError(f"{channels} channels do not split into groups={self.groups}.")
        sizes |= {"N": shape[self.spec[0].index("N")], "C": self._width}
        return tuple(sizes[letter] for letter in self.spec[2])

    def _fan_in(self, shape: Any) -> float:
        channels = shape[self.spec[0].index("C")]
        return channels // self.groups * math.prod(self.filter_shape) / self.s[0]

    def init(self, key: Array, shape: Any) -> Any:
        """Filters in the order of dimension_numbers, and biases."""
        channels = shape[self.spec[0].index("C")]
        out = self.output_shape(shape)
        if self.kind == "ConvLocal":
            spatial = [out[self.spec[2].index(c)] for c in self._letters]
            inner = channels * math.prod(self.filter_shape)
            sizes = dict(zip(self._letters, spatial)) | {"I": inner, "O": self._width}
            weights = tuple(sizes[c] for c in self.spec[1])
            bias = tuple(1 if c == "N" else n for c, n in zip(self.spec[2], out))
        else:
            sizes = dict(zip(self._letters, self.filter_shape))
            sizes |= {"I": channels // self.groups, "O": self._width}
            weights = tuple(sizes[c] for c in self.spec[1])
            bias = tuple(n if c == "C" else 1 for c, n in zip(self.spec[2], out))
        return draw(key, weights, bias, W_std=self.W_std, b_std=self.b_std,
                    parameterization=self.parameterization, fan_in=self._fan_in(shape))  # fmt: skip

    def _patches(self, inputs: Array) -> Array:
        """Inputs that each output reads: [N, out positions..., offsets, channels]."""
        order = [self.spec[0].index(c) for c in "N" + self._letters + "C"]
        x = inputs.transpose(order)
        windows = [self.windows(inputs.shape)[c] for c in self._letters]
        patches = [x]
        for axis, window in enumerate(windows):
            patches = [
                shifted(p, (axis + 1,), window, start) for p in patches for start in window.starts()
            ]
        return jnp.stack(patches, axis=-2)

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The convolution, scaled, plus the bias."""
        del kwargs
        weights, bias = params
        scale = weight_scale(self.parameterization, self.W_std, self._fan_in(inputs.shape), (1, 1))
        if self.parameterization == "ntk":
            scale = self.W_std / (self._fan_in(inputs.shape) * self.s[0]) ** 0.5
        else:
            scale = 1 / self.s[0] ** 0.5
        if self.kind == "ConvLocal":
            outputs = self._apply_local(weights, inputs)
        else:
            outputs = self._apply_shared(weights, inputs)
        outputs = outputs * scale
        if bias is None:
            return outputs
        return outputs + (bias * self.b_std if self.parameterization == "ntk" else bias)

    def _apply_local(self, weights: Array, inputs: Array) -> Array:
        patches = self._patches(inputs)
        # Channels vary slowest among the inputs of an output, as in jax.lax's patches.
        patches = jnp.swapaxes(patches, -1, -2).reshape(patches.shape[:-2] + (-1,))
        order = [self.spec[1].index(c) for c in self._letters + "IO"]
        filters = weights.transpose(order)
        count = len(self._letters)
        spatial = tuple(range(1, count + 1))
        out = lax.dot_general(
            patches, filters, (((count + 1,), (count,)), (spatial, tuple(range(count))))
        )
        names = self._letters + "NC"
        return out.transpose([names.index(c) for c in self.spec[2]])

    def _apply_shared(self, weights: Array, inputs: Array) -> Array:
        windows = self.windows(inputs.shape)
        pads, strides, expands = [], [], []
        for letter in self._letters:
            window = windows[letter]
            axis = self.spec[0].index(letter)
            length = (inputs.shape[axis] - 1) * window.expand + 1
            reach = (window.size - 1) * window.dilation + 1
            high = (window.out - 1) * window.stride + reach - window.low - length
            if window.circular:
                # Wrapped inputs, zero-filled first when entries are spread apart.
                whole = inputs.shape[axis] * window.expand
                config = [(0, 0, 0)] * inputs.ndim
                config[axis] = (0, window.expand - 1, window.expand - 1)
                inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), config)
                high = max((window.out - 1) * window.stride + reach - window.low - whole, 0)
                where = (jnp.arange(-window.low, whole + high)) % whole
                inputs = jnp.take(inputs, where, axis=axis)
                pads.append((0, 0))
                expands.append(1)
            else:
                pads.append((window.low, high))
                expands.append(window.expand)
            strides.append(window.stride)
        return lax.conv_general_dilated(
            inputs, weights, strides, pads, lhs_dilation=expands, rhs_dilation=self.dilation,
            dimension_numbers=self.spec, feature_group_count=self.groups,
        )  # fmt: skip

    def mask(self, mask: Array, shape: Any) -> Array:
        """Masked where the centre of the filter is, in the order of the outputs."""
        one = jnp.all(mask, axis=self.spec[0].index("C"), keepdims=True)
        order = [self.spec[0].index(c) for c in self.spec[2]]
        return self._mask_in_place(one, shape).transpose(order)

    def _mask_in_place(self, mask: Array, shape: Any) -> Array:
        """The mask of the outputs, axes in the order of the inputs."""
        hidden = mask.astype(jnp.float32)
        for letter, window in self.windows(shape).items():
            axis = (self.spec[0].index(letter),)
            if window.expand > 1:
                # Between spread inputs there is no centre: masked where all that is read is.
                seen = window_sum(jnp.ones_like(hidden), axis, window)
                hidden = (window_sum(hidden, axis, window) == seen).astype(jnp.float32)
            else:
                centre = (window.size - 1) // 2 * window.dilation - window.low
                hidden = shifted(hidden, axis, window, centre)
        return hidden > 0

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Averages over the offsets of the filter, then weights and bias as in Dense."""
        del kwargs
        self._check_rank(len(kernel.shape1))
        check_axes(kernel, *self.input_axes)
        windows = self.windows(kernel.shape1)
        spatial_in = [c for c in self.spec[0] if c not in "NC"]
        ordered = [windows[c] for c in spatial_in]
        total = math.prod(self.filter_shape)

        def mixed(array, lead, diagonal):
            return pair_windows(array, lead, diagonal, ordered) / total

        shape1, shape2 = self.output_shape(kernel.shape1), self.output_shape(kernel.shape2)
        inner = tuple(windows[c].out for c in spatial_in)
        middle = _shape_with(self.spec[0], spatial_in, inner, kernel.shape1)
        middle2 = _shape_with(self.spec[0], spatial_in, inner, kernel.shape2)
        masks = [
            None if m is None else self._mask_in_place(m, shape)
            for m, shape in ((kernel.mask1, kernel.shape1), (kernel.mask2, kernel.shape2))
        ]
        before = kernel
        kernel = map_covariances(kernel, mixed, shape1=middle, shape2=middle2)
        kernel = kernel.replace(mask1=masks[0], mask2=masks[1])
        if self.kind == "ConvLocal":
            kernel = _drop_pairs(kernel, inner)
        fan_in = self._fan_in(before.shape1)
        kernel = affine(before, kernel, W_std=self.W_std, b_std=self.b_std,
                        parameterization=self.parameterization, fan_in=fan_in)  # fmt: skip
        if self.kind == "ConvLocal":
            # Biases are unshared as well.
            kernel = _drop_pairs(kernel, inner)
        if spatial_in != [c for c in self.spec[2] if c not in "NC"]:
            order = [spatial_in.index(c) for c in self.spec[2] if c not in "NC"]
            kernel = kernel.transpose(tuple(order))
        masks = [
            None if m is None else _move_outer(m, self.spec[0], self.spec[2])
            for m in (kernel.mask1, kernel.mask2)
        ]
        return kernel.replace(
            shape1=shape1, shape2=shape2, mask1=masks[0], mask2=masks[1],
            batch_axis=self.spec[2].index("N"), channel_axis=self.spec[2].index("C"),
        )  # fmt: skip


def _shape_with(spec: str, letters: Sequence[str], sizes: Sequence[int], shape: Any) -> Any:
    new = dict(zip(letters, sizes))
    return tuple(new.get(c, n) for c, n in zip(spec, shape))


def _move_outer(mask: Array, before: str, after: str) -> Array:
    """Moves batch and channels of a mask whose spatial axes are in their new order already."""
    spatial = [c for c in after if c not in "NC"]
    names = list(before)
    for slot, letter in zip([i for i, c in enumerate(before) if c not in "NC"], spatial):
        names[slot] = letter
    return mask.transpose([names.index(c) for c in after])


def _drop_pairs(kernel: Kernel, spatial: tuple[int, ...]) -> Kernel:
    """Covariances of different positions become zero: their weights are independent."""
    positions = equal_positions(spatial)

    def masked(array, lead, diagonal):
        if diagonal or positions is None:
            return array
        keep = positions.reshape((1,) * lead + positions.shape)
        return jnp.where(keep, array, jnp.zeros((), array.dtype))

    return map_covariances(kernel, masked)


def _make(
    kind: str, out_chan: int, filter_shape: Sequence[int], strides: Any, padding: Any, W_std: Any,
    b_std: Any, dimension_numbers: Any, parameterization: str, s: Any, dilation: Any, groups: int,
) -> Network:  # fmt: skip
    check_affine(kind, parameterization, s, W_std, b_std)
    filter_shape = tuple(filter_shape)
    count = len(filter_shape)
    strides = (1,) * count if strides is None else tuple(strides)
    dilation = (1,) * count if dilation is None else tuple(dilation)
    for key, value in (("filter_shape", filter_shape), ("strides", strides),
                       ("dilation", dilation)):  # fmt: skip
        if len(value) != count or any(int(n) != n or n < 1 for n in value):
            raise ValueError(f"{kind}: {key} must be {count} positive integers, got {value}.")
    if groups < 1 or out_chan % groups:
        raise ValueError(f"{kind}: groups={groups} must divide out_chan={out_chan}.")
    spec = default_spec(count) if dimension_numbers is None else tuple(dimension_numbers)
    lhs, rhs, out = spec
    spatial = sorted(set(lhs) - set("NC"))
    if (
        len(set(lhs)) != len(lhs)
        or sorted(out) != sorted(lhs)
        or sorted(set(rhs) - set("IO")) != spatial
        or not set("NC") <= set(lhs)
        or not set("IO") <= set(rhs)
        or len(rhs) != len(lhs)
    ):
        raise ValueError(
            f"{kind}: dimension_numbers must be three strings like {default_spec(count)}, got "
            f"{spec}."
        )
    if len(spatial) != count:
        raise ValueError(
            f"{kind}: filter_shape {filter_shape} has {count} axes, dimension_numbers {spec} "
            f"{len(spatial)}."
        )
    return as_network(
        ConvLayer(
            kind,
            out_chan,
            filter_shape,
            strides,
            parse_padding(kind, padding),
            W_std,
            b_std,
            (lhs, rhs, out),
            parameterization,
            tuple(s),
            dilation,
            groups,
        )
    )


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
    *,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Network:
    """Convolution.

    Args:
      out_chan: number of output channels.
      filter_shape: along each spatial axis.
      strides: along each spatial axis; None for 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR" (periodic).
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None for none.
      dimension_numbers: as in jax.lax.conv_general_dilated; None for ("NHWC", "HWIO", "NHWC").
      parameterization: "ntk" or "standard", as in `Dense`.
      s: as in `Dense`.
      dilation: distance of the inputs that a filter reads; None for 1.
      groups: number of groups of channels that do not mix. In the limit of many channels per
        group the kernel does not depend on it.
    """
    return _make("Conv", out_chan, filter_shape, strides, padding, W_std, b_std,
                 dimension_numbers, parameterization, s, dilation, groups)  # fmt: skip


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Network:
    """Transposed convolution; see `Conv` for the arguments."""
    return _make("ConvTranspose", out_chan, filter_shape, strides, padding, W_std, b_std,
                 dimension_numbers, parameterization, s, None, 1)  # fmt: skip


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Network:
    """Convolution with filters and biases of their own at every position; see `Conv`."""
    return _make("ConvLocal", out_chan, filter_shape, strides, padding, W_std, b_std,
                 dimension_numbers, parameterization, s, None, 1)  # fmt: skip
