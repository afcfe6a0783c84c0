"""A small convolutional network."""

import jax

from shared.models._activation import activation as find_activation
from shared.models._conv import apply_conv, image_channels, init_conv, mean_pool
from shared.models._model import (
    Array,
    Model,
    PyTree,
    check_positive,
    check_rate,
    example_keys,
    floats,
)
from shared.models._model import (
    dropout as apply_dropout,
)
from shared.models._scale import (
    Parameterization,
    Role,
    Updates,
    apply_dense,
    init_dense,
    make_scale,
)


def convnet(
    *,
    num_outputs: int,
    width: int = 32,
    depth: int = 3,
    activation: str = "relu",
    parameterization: Parameterization = "standard",
    init_scale: float = 1.0,
    bias_scale: float = 0.0,
    base_width: int | None = None,
    updates: Updates = "gradient",
    dropout: float = 0.0,
) -> Model:
    """3 x 3 convolutions, 2 x 2 mean pooling where the image allows it, and a mean over space.

    Args:
      num_outputs: size of the last layer.
      width: channels of every convolution.
      depth: number of convolutions.
      activation: as in `mlp`.
      parameterization, init_scale, bias_scale, base_width, updates: as in `mlp`.
      dropout: rate before the last layer, in [0, 1).
    Returns:
      A `Model` of images [batch, height, width, channels] whose logits are [batch, num_outputs];
      its model state is ().
    Raises:
      ValueError: an argument is outside what is listed here.
    """
    check_positive("convnet", num_outputs=num_outputs, width=width, depth=depth)
    check_rate("convnet", dropout)
    function, gain = find_activation("convnet", activation)
    scale = make_scale(
        "convnet",
        width=width,
        parameterization=parameterization,
        init_scale=init_scale,
        bias_scale=bias_scale,
        base_width=base_width,
        updates=updates,
    )
    hidden: list[Role] = ["hidden"] * (depth - 1)
    roles: list[Role] = ["input", *hidden]

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key, depth + 1)
        channels = [image_channels("convnet", inputs), *[width] * depth]
        params = {
            f"conv_{i}": init_conv(
                keys[i], scale, roles[i], channels[i], channels[i + 1], size=3, gain=gain
            )
            for i in range(depth)
        }
        params["readout"] = init_dense(keys[depth], scale, "output", width, num_outputs)
        return params, ()

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        x = floats(inputs, params["readout"]["weight"].dtype)
        keys = example_keys(key, len(x)) if train and dropout else None
        for i in range(depth):
            x = function(apply_conv(params[f"conv_{i}"], x, scale, roles[i], gain=gain))
            if min(x.shape[1:3]) >= 4 and i < depth - 1:
                x = mean_pool(x)
        x = apply_dropout(x.mean((1, 2)), dropout, keys, 0)
        return apply_dense(params["readout"], x, scale, "output"), model_state

    return Model(init, apply)
