"""Fully connected networks."""

import math

import jax

from shared.models._activation import activation as find_activation
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


def mlp(
    *,
    num_outputs: int,
    width: int = 256,
    depth: int = 2,
    activation: str = "relu",
    parameterization: Parameterization = "standard",
    init_scale: float = 1.0,
    bias_scale: float = 0.0,
    base_width: int | None = None,
    updates: Updates = "gradient",
    dropout: float = 0.0,
) -> Model:
    """A multilayer perceptron over flattened inputs.

    Args:
      num_outputs: size of the last layer.
      width: units of every hidden layer.
      depth: number of hidden layers; 0 is a linear model.
      activation: "relu", "gelu", "silu", "tanh", "erf" or "identity".
      parameterization: "standard", "ntk" or "mup"; see `Scale` for this and the next four.
      init_scale: times the gain of the activation, the W_std of the theory.
      bias_scale: standard deviation of the biases at the start, the b_std of the theory.
      base_width: for "mup", the width at which it is the standard parameterization.
      updates: for "mup", "gradient" (SGD) or "sign" (Adam, Lion).
      dropout: rate after every hidden layer, in [0, 1).
    Returns:
      A `Model` whose logits are [batch, num_outputs]; its model state is ().
    Raises:
      ValueError: an argument is outside what is listed here.
    """
    check_positive("mlp", num_outputs=num_outputs, width=width, depth=depth + 1)
    check_rate("mlp", dropout)
    function, gain = find_activation("mlp", activation)
    scale = make_scale(
        "mlp",
        width=width,
        parameterization=parameterization,
        init_scale=init_scale,
        bias_scale=bias_scale,
        base_width=base_width,
        updates=updates,
    )
    # With no hidden layer nothing grows with the width, and the one layer keeps its multiplier 1.
    hidden: list[Role] = ["hidden"] * (depth - 1)
    roles: list[Role] = ["input", *hidden, "output"] if depth else ["input"]
    gains = [gain] * depth + [1.0]

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        sizes = [math.prod(inputs.shape[1:]), *[width] * depth, num_outputs]
        keys = jax.random.split(key, depth + 1)
        params = {
            f"layer_{i}": init_dense(
                keys[i], scale, roles[i], sizes[i], sizes[i + 1], gain=gains[i]
            )
            for i in range(depth + 1)
        }
        return params, ()

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        x = floats(inputs, params["layer_0"]["weight"].dtype).reshape(len(inputs), -1)
        keys = example_keys(key, len(x)) if train and dropout else None
        for i in range(depth):
            x = function(apply_dense(params[f"layer_{i}"], x, scale, roles[i], gain=gains[i]))
            x = apply_dropout(x, dropout, keys, i)
        return apply_dense(params[f"layer_{depth}"], x, scale, roles[depth]), model_state

    return Model(init, apply)
