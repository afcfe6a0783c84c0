"""What a law is: parameters, and a prediction from them and the inputs of a run."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

FURTHEST = 60.0  # of a scaled logarithm; e^-60 stands for zero


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One symbol of a law.

    symbol: the paper's letter, the key in `params`.
    meaning: in a few words.
    scale: how the fit sees it. "log": positive, by its logarithm. "linear": as it is.
      "complement": in (0, 1) and close to 1, by log(1 - x).
    low, high: bounds, in the law's own units for "linear" and "complement". Amplitudes ("log")
      default to the whole half line, so that a change of units can never make a bound bind.
    linear: the prediction is linear in it, so starts solve for it in closed form.
    starts: values of it at which fits start, for parameters that are not linear; in units in
      which every input has geometric mean 1.
    unit: dimension -> power, for example {"loss": 1, "params": "alpha"} for loss * params^alpha.
      A power is a number, a symbol, or a symbol after a minus sign. The fit works in units in
      which the data are of order 1 and converts by this.
    """

    symbol: str
    meaning: str
    scale: str = "log"
    low: float = 0.0
    high: float = math.inf
    linear: bool = False
    starts: tuple[float, ...] = ()
    unit: Any = dataclasses.field(default_factory=dict, hash=False)

    def inner(self, value):
        """From the scaled value to the number that the fit moves."""
        if self.scale == "log":
            return np.log(np.maximum(value, math.exp(-FURTHEST)))
        if self.scale == "complement":
            return np.log(np.maximum(1.0 - np.asarray(value), 1e-15))
        return np.asarray(value, dtype=float)

    def outer(self, z):
        """The inverse of `inner`; traceable."""
        if self.scale == "log":
            return jnp.exp(z)
        if self.scale == "complement":
            return 1.0 - jnp.exp(z)
        return z

    def inner_bounds(self, factor):
        """(lowest, highest) inner value, where `factor` turns the scaled value into the natural."""
        if self.scale == "linear":
            return self.low / factor, self.high / factor
        if self.scale == "complement":
            return float(self.inner(self.high)), float(self.inner(self.low))
        low = -FURTHEST if self.low <= 0 else math.log(self.low / factor)
        high = FURTHEST if math.isinf(self.high) else math.log(self.high / factor)
        return low, high


@dataclasses.dataclass(frozen=True)
class Law:
    """A law of loss. A new one names its `parameters` and `inputs` and writes `predict`.

    >>> class Exponential(Law):
    ...     parameters = (
    ...         Parameter("E", "loss at infinite size", linear=True, unit={"loss": 1}),
    ...         Parameter("A", "reducible loss", linear=True, unit={"loss": 1}),
    ...         Parameter("x0", "scale of its decay", starts=(0.3, 1.0, 3.0), unit={"params": 1}),
    ...     )
    ...     inputs = ("params",)
    ...
    ...     def predict(self, params, inputs):
    ...         return params["E"] + params["A"] * jnp.exp(-inputs["params"] / params["x0"])
    >>> Exponential().symbols
    ('E', 'A', 'x0')
    """

    # Of a law or of an instance: its parameters in the order of the paper, and the keys of the
    # data that `predict` reads, each also the name of a dimension.
    parameters: ClassVar[Any]
    inputs: ClassVar[Any]

    @property
    def name(self) -> str:
        """The name that tables and plots show."""
        return type(self).__name__

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the parameters."""
        return tuple(parameter.symbol for parameter in self.parameters)

    def predict(self, params: Mapping[str, Any], inputs: Mapping[str, Any]):
        """Loss [points] from scalars by symbol and arrays by name; traceable."""
        raise TypeError(f"the law {self.name} must define predict(params, inputs).")

    def warnings(self, params: Mapping[str, float]) -> list[str]:
        """What a reader of fitted parameters must know about this law."""
        del params
        return []

    def prepare(self, data) -> "Prepared":
        """Checks the data and turns them into arrays in units in which they are of order 1."""
        from scaling_laws import _data

        return _data.prepare_table(self, data)

    def sketch(self, data, prepared: "Prepared") -> "Prepared":
        """Cheaper data of the same shape for the search among starts; by default the same."""
        del data
        return prepared

    def factors(self, params, scales):
        """Natural over scaled value of each parameter, for given values of the exponents.

        `params` may be natural or scaled: an exponent has no unit and is the same in both.
        """
        result = []
        for parameter in self.parameters:
            factor = 1.0
            for dimension, power in parameter.unit.items():
                factor = factor * scales.get(dimension, 1.0) ** _power(power, params)
            result.append(factor)
        return result

    def natural(self, z, scales):
        """Parameters by symbol in the data's own units, from the inner vector; traceable."""
        scaled = {p.symbol: p.outer(z[i]) for i, p in enumerate(self.parameters)}
        factors = self.factors(scaled, scales)
        return {symbol: value * factor for (symbol, value), factor in zip(scaled.items(), factors)}

    def values(self, z, scales) -> dict[str, float]:
        """`natural` on the host, in float64."""
        with jax.enable_x64(True):
            return {s: float(v) for s, v in self.natural(jnp.asarray(z), scales).items()}

    def canonical(self, z: np.ndarray) -> np.ndarray:
        """The inner vector to report where several make the same prediction; as a rule, z."""
        return z

    def inner(self, params: Mapping[str, float], scales) -> np.ndarray:
        """The inverse of `natural`, on the host."""
        factors = self.factors(params, scales)
        return np.array(
            [
                float(p.inner(float(params[p.symbol]) / factor))
                for p, factor in zip(self.parameters, factors)
            ]
        )

    def residual(self, z, inputs, targets):
        """Log of the predicted minus log of the measured loss; the inputs are scaled."""
        scaled = {p.symbol: p.outer(z[i]) for i, p in enumerate(self.parameters)}
        return safe_log(self.predict(scaled, inputs)) - targets

    def nonlinear_starts(self) -> np.ndarray:
        """The product of the parameters' start values, [starts, parameters], linear ones at 1."""
        axes = [(1.0,) if p.linear else p.starts for p in self.parameters]
        return np.array(list(itertools.product(*axes)), dtype=float)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data as the engine takes them.

    inputs: scaled arrays, leaves of any shape. log_losses: [points], of the scaled loss.
    scales: dimension -> the unit inside, in the data's own unit. groups: [points], the curve of
    each point (0 for a table). weights: [points]. order: the row of the data (of all curves in
    turn) that each point is. notes: what was done to the data, in words.
    """

    inputs: Any
    log_losses: np.ndarray
    scales: dict[str, float]
    groups: np.ndarray
    weights: np.ndarray
    order: np.ndarray
    notes: tuple[str, ...] = ()


# Below this a predicted loss is replaced by a floor with a slope, so that a start whose prediction
# is negative still knows where to go.
LOWEST = 1e-3


def safe_log(prediction):
    """log of the prediction where it exceeds LOWEST, and its tangent line there below."""
    low = prediction < LOWEST
    inside = jnp.log(jnp.where(low, LOWEST, prediction))
    return jnp.where(low, math.log(LOWEST) + (prediction - LOWEST) / LOWEST, inside)


def power(base, exponent):
    """base^exponent for positive base: one exponential, since the logarithm is shared."""
    return jnp.exp(exponent * jnp.log(base))


def _power(spec, params):
    if isinstance(spec, str):
        return -params[spec[1:]] if spec.startswith("-") else params[spec]
    return spec
