"""Finite networks in the NTK parameterization, and points on the circle, for these figures."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Params = list[tuple[Array, Array]]


def init(key: Array, sizes: Sequence[int]) -> Params:
    """Standard normal weights and biases for layers of the given sizes."""
    params = []
    for k, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, k))
        weights = jax.random.normal(weight_key, (rows, columns))
        params.append((weights, jax.random.normal(bias_key, (columns,))))
    return params


def apply(params: Params, x: Array, *, activation, w_std: float = 1.0, b_std: float = 0.1) -> Array:
    """Outputs [n, outputs]: every layer is w_std W x / sqrt(fan in) + b_std b."""
    for k, (weights, bias) in enumerate(params):
        x = w_std / weights.shape[0] ** 0.5 * (x @ weights) + b_std * bias[None]
        if k < len(params) - 1:
            x = activation(x)
    return x


def circle(angles) -> Array:
    """Points (cos, sin), [n, 2]."""
    angles = jnp.asarray(angles)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fitted_slope(x, y) -> tuple[float, float]:
    """Slope of log y against log x with its standard error."""
    a, b = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    centered = a - a.mean()
    slope = float(centered @ b / (centered @ centered))
    rest = b - b.mean() - slope * centered
    error = float(np.sqrt(rest @ rest / max(len(a) - 2, 1) / (centered @ centered)))
    return slope, error
