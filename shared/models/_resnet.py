"""Residual networks for small images, with batch statistics that are synchronised over devices."""

import jax
import jax.numpy as jnp

from shared.models._activation import activation as find_activation
from shared.models._conv import apply_conv, image_channels, init_conv
from shared.models._model import Array, Model, PyTree, check_positive, floats
from shared.models._norm import apply_batch_norm, init_batch_norm
from shared.models._scale import (
    Parameterization,
    Updates,
    apply_dense,
    init_dense,
    make_scale,
)

STAGES = 3  # each halves the image and doubles the channels of the one before


def resnet(
    *,
    num_outputs: int,
    width: int = 16,
    depth: int = 20,
    axis_name: str | None = None,
    activation: str = "relu",
    parameterization: Parameterization = "standard",
    init_scale: float = 1.0,
    base_width: int | None = None,
    updates: Updates = "gradient",
    momentum: float = 0.9,
) -> Model:
    """The residual network for CIFAR of arXiv:1512.03385, Section 4.2.

    Three stages of (depth - 2) / 6 blocks, with width, 2 width and 4 width channels. A block is two
    3 x 3 convolutions, each with batch normalization; where the shape changes, the other path is a
    1 x 1 convolution with batch normalization.

    Args:
      num_outputs: size of the last layer.
      width: channels of the first stage.
      depth: layers with weights on the longest path: 8, 14, 20, 26, ...
      axis_name: of the devices that share a batch (`shared.devices.AXIS` in the loop); their batch
        statistics are those of the whole batch. None on one device.
      activation: as in `mlp`.
      parameterization, init_scale, base_width, updates: as in `mlp`.
      momentum: weight of the old running averages in each update, in [0, 1).
    Returns:
      A `Model` of images [batch, height, width, channels] whose logits are [batch, num_outputs];
      its model state holds the running averages.
    Raises:
      ValueError: an argument is outside what is listed here.
    """
    check_positive("resnet", num_outputs=num_outputs, width=width, depth=depth)
    blocks, rest = divmod(depth - 2, 2 * STAGES)
    if rest or blocks < 1:
        raise ValueError(f"resnet: depth must be 6 n + 2 (8, 14, 20, 26, ...), got {depth!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"resnet: momentum must be in [0, 1), got {momentum!r}.")
    function, gain = find_activation("resnet", activation)
    scale = make_scale(
        "resnet",
        width=width,
        parameterization=parameterization,
        init_scale=init_scale,
        base_width=base_width,
        updates=updates,
    )

    # name -> (channels in, channels out, stride, has a projection)
    plan: dict[str, tuple[int, int, int, bool]] = {}
    channels = width
    for stage in range(STAGES):
        for block in range(blocks):
            out, first = width * 2**stage, block == 0 and stage > 0
            plan[f"stage_{stage}_block_{block}"] = (channels, out, 2 if first else 1, first)
            channels = out

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        keys = iter(jax.random.split(key, 2 + 3 * len(plan)))

        def unit(role, channels_in, channels_out, size):
            """A convolution with its normalization: (parameters, statistics)."""
            conv = init_conv(
                next(keys),
                scale,
                role,
                channels_in,
                channels_out,
                size=size,
                gain=gain,
                use_bias=False,
            )
            norm, statistics = init_batch_norm(scale, channels_out)
            return {"conv": conv, "norm": norm}, statistics

        params, state = {}, {}
        params["stem"], state["stem"] = unit("input", image_channels("resnet", inputs), width, 3)
        for name, (channels_in, channels_out, _, projects) in plan.items():
            layers = {
                "first": unit("hidden", channels_in, channels_out, 3),
                "second": unit("hidden", channels_out, channels_out, 3),
            }
            if projects:
                layers["projection"] = unit("hidden", channels_in, channels_out, 1)
            params[name] = {layer: made[0] for layer, made in layers.items()}
            state[name] = {layer: made[1] for layer, made in layers.items()}
        params["readout"] = init_dense(next(keys), scale, "output", channels, num_outputs)
        return params, state

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        del key  # nothing here is random

        def unit(layer, statistics, x, role="hidden", stride=1):
            x = apply_conv(layer["conv"], x, scale, role, gain=gain, stride=stride)
            return apply_batch_norm(
                layer["norm"],
                statistics,
                x,
                scale,
                train=train,
                axis_name=axis_name,
                momentum=momentum,
            )

        state = {}
        x = floats(inputs, params["readout"]["weight"].dtype)
        x, state["stem"] = unit(params["stem"], model_state["stem"], x, "input")
        x = function(x)
        for name, (_, _, stride, projects) in plan.items():
            layers, old, new = params[name], model_state[name], {}
            branch, new["first"] = unit(layers["first"], old["first"], x, stride=stride)
            branch, new["second"] = unit(layers["second"], old["second"], function(branch))
            if projects:
                x, new["projection"] = unit(
                    layers["projection"], old["projection"], x, stride=stride
                )
            x = function(x + branch)
            state[name] = new
        return apply_dense(params["readout"], jnp.mean(x, (1, 2)), scale, "output"), state

    return Model(init, apply)
