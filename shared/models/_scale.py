"""Standard, NTK and mu-P parameterization: how large weights start and what multiplies them.

A layer computes `multiplier * (x @ w)` with `w` drawn from N(0, std^2). For a layer with `fan_in`
inputs and `m = width / base_width`:

| parameterization  | layer  | std                    | multiplier           |
|-------------------|--------|------------------------|----------------------|
| standard          | all    | gain / sqrt(fan_in)    | 1                    |
| ntk               | all    | 1                      | gain / sqrt(fan_in)  |
| mup, "gradient"   | input  | (standard) / sqrt(m)   | sqrt(m)              |
|                   | hidden | (standard)             | 1                    |
|                   | output | (standard)             | 1 / sqrt(m)          |
| mup, "sign"       | input  | (standard)             | 1                    |
|                   | hidden | (standard) * m         | 1 / m                |
|                   | output | (standard) * sqrt(m)   | 1 / m                |

The multipliers of mu-P carry what others put into learning rates of their own for every layer, so
one learning rate serves all widths: "gradient" is for updates in proportion to the gradient (SGD,
with or without momentum), "sign" for updates whose size does not follow the gradient's (Adam,
Lion). At `width == base_width` both are the standard parameterization.

Reference: Yang and Hu, arXiv:2011.14522, Table 1 (the symmetric form for SGD), and Yang et al.,
arXiv:2203.03466, Tables 3 and 8 (Adam), moved into multipliers by their Lemma J.1.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from shared.models._model import Array

Parameterization = Literal["standard", "ntk", "mup"]
Updates = Literal["gradient", "sign"]
Role = Literal["input", "hidden", "output"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a model draws and multiplies its weights; see the module docstring.

    Attributes:
      parameterization: "standard", "ntk" or "mup".
      init_scale: multiplies every weight's share of the initial function; W_std of the theory is
        init_scale * gain.
      bias_scale: standard deviation of the biases at the start; b_std of the theory. With "ntk" it
        multiplies the biases, so that 0 means a network without biases.
      width_ratio: m = width / base_width, for "mup".
      updates: the kind of optimizer, for "mup".
    """

    parameterization: Parameterization = "standard"
    init_scale: float = 1.0
    bias_scale: float = 0.0
    width_ratio: float = 1.0
    updates: Updates = "gradient"

    def weight(self, role: Role, fan_in: int, gain: float = 1.0) -> tuple[float, float]:
        """(std, multiplier) of a layer's weights."""
        std = self.init_scale * gain / math.sqrt(fan_in)
        m = self.width_ratio
        if self.parameterization == "standard":
            return std, 1.0
        if self.parameterization == "ntk":
            return 1.0, std
        # What the layer applies starts at std, and one power sqrt(m) smaller at the output.
        start = std / math.sqrt(m) if role == "output" else std
        if self.updates == "gradient":
            # A multiplier c makes a gradient step on c * w larger by c^2: by m, 1, 1 / m.
            multiplier = {"input": math.sqrt(m), "hidden": 1.0, "output": 1 / math.sqrt(m)}[role]
        else:
            # ... and a step that ignores the gradient's size larger by c: by 1, 1 / m, 1 / m.
            multiplier = {"input": 1.0, "hidden": 1 / m, "output": 1 / m}[role]
        return start / multiplier, multiplier

    def vector(self, role: Role = "hidden") -> float:
        """Multiplier of a layer's vectors over channels (biases, gains of a normalization).

        Their fan-in is 1, so they scale as the input layer does, where they grow with the width:
        those of the last layer do not.
        """
        if self.parameterization == "mup" and self.updates == "gradient" and role != "output":
            return math.sqrt(self.width_ratio)
        return 1.0


def make_scale(
    caller: str,
    *,
    width: int,
    parameterization: Parameterization,
    init_scale: float,
    bias_scale: float = 0.0,
    base_width: int | None = None,
    updates: Updates = "gradient",
) -> Scale:
    """Checks what every model takes and builds its `Scale`.

    Raises:
      ValueError: an unknown name, a scale that is not finite or negative, or "mup" without
        base_width.
    """
    if parameterization not in ("standard", "ntk", "mup"):
        raise ValueError(
            f'{caller}: parameterization must be "standard", "ntk" or "mup", '
            f"got {parameterization!r}."
        )
    if updates not in ("gradient", "sign"):
        raise ValueError(f'{caller}: updates must be "gradient" or "sign", got {updates!r}.')
    if not 0 < init_scale < math.inf:
        raise ValueError(f"{caller}: init_scale must be positive and finite, got {init_scale!r}.")
    if not 0 <= bias_scale < math.inf:
        raise ValueError(f"{caller}: bias_scale must be >= 0 and finite, got {bias_scale!r}.")
    if parameterization == "mup" and base_width is None:
        raise ValueError(
            f'{caller}: parameterization="mup" needs base_width, the width whose learning rate '
            "was tuned."
        )
    if base_width is not None and base_width < 1:
        raise ValueError(f"{caller}: base_width must be positive, got {base_width!r}.")
    ratio = width / base_width if base_width is not None else 1.0
    return Scale(parameterization, init_scale, bias_scale, ratio, updates)


def init_weight(
    key: Array, scale: Scale, role: Role, shape: tuple[int, ...], *, gain: float = 1.0
) -> Array:
    """Weights [..., inputs, outputs] from N(0, std^2); leading axes count to the fan-in."""
    std, _ = scale.weight(role, math.prod(shape[:-1]), gain)
    return std * jax.random.normal(key, shape)


def init_bias(key: Array, scale: Scale, role: Role, size: int) -> Array | None:
    """Biases [size], or None for an NTK network without biases."""
    if scale.parameterization == "ntk":
        return jax.random.normal(key, (size,)) if scale.bias_scale else None
    return scale.bias_scale / scale.vector(role) * jax.random.normal(key, (size,))


def apply_bias(x: Array, bias: Array | None, scale: Scale, role: Role) -> Array:
    """Adds biases [n] to x [..., n]."""
    if bias is None:
        return x
    factor = scale.bias_scale if scale.parameterization == "ntk" else scale.vector(role)
    return x + jnp.broadcast_to(factor * bias, x.shape)


def init_dense(
    key: Array,
    scale: Scale,
    role: Role,
    fan_in: int,
    size: int,
    *,
    gain: float = 1.0,
    use_bias: bool = True,
) -> dict[str, Any]:
    """Parameters of a dense layer: "weight" [fan_in, size] and, where there is one, "bias"."""
    weight_key, bias_key = jax.random.split(key)
    layer: dict[str, Any] = {
        "weight": init_weight(weight_key, scale, role, (fan_in, size), gain=gain)
    }
    bias = init_bias(bias_key, scale, role, size) if use_bias else None
    if bias is not None:
        layer["bias"] = bias
    return layer


def apply_dense(
    layer: dict[str, Any], x: Array, scale: Scale, role: Role, *, gain: float = 1.0
) -> Array:
    """The dense layer that `init_dense` made, on x [..., fan_in]."""
    weight = layer["weight"]
    _, multiplier = scale.weight(role, weight.shape[0], gain)
    return apply_bias(multiplier * (x @ weight), layer.get("bias"), scale, role)
