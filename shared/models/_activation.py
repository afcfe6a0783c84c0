"""Activations by name, each with the gain that keeps the size of activations through depth."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.models._model import Array


class Activation(NamedTuple):
    """A function and 1 / sqrt(E[f(z)^2]) for z ~ N(0, 1): the gain of the weights before it."""

    function: Callable[[Array], Array]
    gain: float


def _gaussian_gain(function: Callable[[np.ndarray], np.ndarray]) -> float:
    points, weights = np.polynomial.hermite_e.hermegauss(101)
    return 1 / math.sqrt(np.sum(weights * function(points) ** 2) / np.sum(weights))


def _erf(z: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in z])


def _relu(z: Array) -> Array:
    """max(z, 0), and NaN for NaN: XLA's maximum followed by a mean passes over NaN on a CPU."""
    return jnp.where(z <= 0, 0, z)


# The gain is taken for unit input. For functions that are not homogeneous it keeps E[f^2] at one
# only near there, which is all that an initialization needs.
_ACTIVATIONS = {
    "relu": Activation(_relu, math.sqrt(2)),
    "gelu": Activation(
        lambda z: jax.nn.gelu(z, approximate=False),
        _gaussian_gain(lambda z: z * (1 + _erf(z / math.sqrt(2))) / 2),
    ),
    "silu": Activation(jax.nn.silu, _gaussian_gain(lambda z: z / (1 + np.exp(-z)))),
    "tanh": Activation(jnp.tanh, _gaussian_gain(np.tanh)),
    "erf": Activation(jax.scipy.special.erf, _gaussian_gain(_erf)),
    "identity": Activation(lambda z: z, 1.0),
}


def activation(caller: str, name: str) -> Activation:
    """The activation called `name`.

    Raises:
      ValueError: there is none of that name; the message lists those there are.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"{caller}: activation must be one of {sorted(_ACTIVATIONS)}, got {name!r}."
        )
    return _ACTIVATIONS[name]
