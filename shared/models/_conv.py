"""Convolutions and pooling over images [batch, height, width, channels]."""

from typing import Any

import jax
import jax.numpy as jnp

from shared.models._model import Array
from shared.models._scale import Role, Scale, apply_bias, init_bias, init_weight


def image_channels(caller: str, inputs: Array) -> int:
    """The last axis of a batch of images; refuses another rank."""
    if inputs.ndim != 4:
        raise ValueError(
            f"{caller}: images must be [batch, height, width, channels], got shape {inputs.shape}."
        )
    return inputs.shape[-1]


def init_conv(
    key: Array,
    scale: Scale,
    role: Role,
    channels_in: int,
    channels_out: int,
    *,
    size: int,
    gain: float,
    use_bias: bool = True,
) -> dict[str, Any]:
    """Parameters: "weight" [size, size, channels_in, channels_out] and, maybe, "bias"."""
    weight_key, bias_key = jax.random.split(key)
    shape = (size, size, channels_in, channels_out)
    layer: dict[str, Any] = {"weight": init_weight(weight_key, scale, role, shape, gain=gain)}
    bias = init_bias(bias_key, scale, role, channels_out) if use_bias else None
    if bias is not None:
        layer["bias"] = bias
    return layer


def apply_conv(
    layer: dict[str, Any], x: Array, scale: Scale, role: Role, *, gain: float, stride: int = 1
) -> Array:
    """The convolution that `init_conv` made, zero padded so that stride 1 keeps the size."""
    weight = layer["weight"]
    size = weight.shape[0]
    _, multiplier = scale.weight(role, weight[..., 0].size, gain)
    before, after = (size - 1) // 2, size // 2
    out = jax.lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        [(before, after), (before, after)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return apply_bias(multiplier * out, layer.get("bias"), scale, role)


def mean_pool(x: Array) -> Array:
    """Means over 2 x 2 squares; an odd last row or column is left out."""
    _, height, width, _ = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.mean(jnp.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]), axis=0)
