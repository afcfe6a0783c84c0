"""Laws of a whole loss curve under a learning-rate schedule: one view, many kernels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws.laws._base import Law, Parameter, power

WARMUPS = ("area", "full", "peak")
SKETCHED = 24  # points of each curve in the search among starts; all of them count afterwards
TRUNK = (
    Parameter("L0", "loss at infinite area", linear=True, unit={"loss": 1}),
    Parameter("A", "loss that training removes", linear=True, unit={"loss": 1, "area": "alpha"}),
    Parameter("alpha", "exponent of the area", "linear", 0.0, 3.0, starts=(0.3, 0.6, 1.0)),
)


@dataclasses.dataclass(frozen=True)
class ScheduleLaw(Law):
    """L(t) = L0 + A S1(t)^-alpha - sum_{k <= t} (eta_{k-1} - eta_k) R(k, t).

    A law is its response kernel R: how much of the gain of a unit drop at step k has arrived at
    step t. `response` gets it from the area since the drop S_k(t), the steps since it, the rate
    after it and the area before it.

    warmup: what the steps before the first maximum of the rate count for. "area": their rates add
    to S1, and their rises are no drops. "full": both as logged, so rises are negative drops.
    "peak": the rate is taken to be at its peak from step 0, as in Tissue et al.
    Steps count from 0, and the loss at step t has seen the update with rate eta_t.
    """

    warmup: str = "area"
    inputs: ClassVar[Any] = ("area",)

    def __post_init__(self):
        if self.warmup not in WARMUPS:
            raise ValueError(
                f"{type(self).__name__}: warmup must be one of {WARMUPS}, got {self.warmup!r}."
            )

    @property
    def parameters(self):
        return (*TRUNK, *self.kernel)

    @property
    def kernel(self) -> tuple[Parameter, ...]:
        """The parameters of the response."""
        raise TypeError(f"the schedule law {self.name} must define kernel, its parameters.")

    def response(self, params, drop):
        """R for each row of `drop`, a `Pairs` of arrays; traceable."""
        raise TypeError(f"the schedule law {self.name} must define response(params, drop).")

    def predict(self, params, inputs):
        """The loss at every logged point."""
        gain = self.gain(params, inputs)
        return params["L0"] + params["A"] * power(inputs["area"], -params["alpha"]) - gain

    def gain(self, params, inputs):
        """What annealing has taken off the loss, at every point."""
        drop = inputs["drop"]
        terms = drop.weight * self.response(params, drop)
        points = inputs["area"].shape[0]
        return jax.ops.segment_sum(terms, drop.point, points, indices_are_sorted=True)

    def prepare(self, data):
        """Areas and nodes of a list of curves, in units of order 1."""
        from scaling_laws import _data

        return _data.prepare_curves(self, data)

    def sketch(self, data, prepared):
        """Some of the points of each curve with a third of the nodes, for the search of starts."""
        from scaling_laws import _data

        return _data.thin_curves(self, data, prepared, SKETCHED, nodes_per_block=1)


@dataclasses.dataclass(frozen=True)
class LRAnnealing(ScheduleLaw):
    """R = C (1 - lambda^(t-k+1)) / (1 - lambda), so that the sum is C S2.

    Tissue, Wang & Wang 2024, arXiv:2408.11029. The paper takes lambda 0.999 and warmup "peak".

    Args:
      decay: lambda, or None to fit it.
      size: adds the model size N (`params` of each curve): L0 + A S1^-alpha + B N^-beta -
        C N^-gamma S2. A negative gamma says that larger models gain more from annealing.
    """

    decay: float | None = None
    size: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.decay is not None and not 0.0 < self.decay < 1.0:
            raise ValueError(f"LRAnnealing: decay must be in (0, 1) or None, got {self.decay!r}.")

    @property
    def inputs(self):
        return ("area", "params") if self.size else ("area",)

    @property
    def kernel(self):
        low, high = (0.5, 1 - 1e-7) if self.decay is None else (self.decay, self.decay)
        starts = (0.99, 0.999) if self.decay is None else (self.decay,)
        unit = {"loss": 1, "rate": -1}
        kernel = (
            Parameter(
                "C",
                "gain per area of annealing",
                linear=True,
                unit=unit | ({"params": "gamma"} if self.size else {}),
            ),
            Parameter(
                "lambda", "memory of a drop, per step", "complement", low, high, starts=starts
            ),
        )
        if not self.size:
            return kernel
        return (
            *kernel,
            Parameter(
                "B", "loss from finite size", linear=True, unit={"loss": 1, "params": "beta"}
            ),
            Parameter("beta", "exponent of N", "linear", 0.0, 5.0, starts=(0.3, 1.0)),
            Parameter("gamma", "exponent of N in the gain", "linear", -3.0, 3.0, starts=(0.0,)),
        )

    def response(self, params, drop):
        """C (1 - lambda^n) / (1 - lambda), n = t - k + 1."""
        rest = 1.0 - params["lambda"]
        return params["C"] * -jnp.expm1(drop.elapsed * jnp.log1p(-rest)) / rest

    def predict(self, params, inputs):
        """L0 + A S1^-alpha - C S2, with the terms in N where the law has them."""
        if not self.size:
            return super().predict(params, inputs)
        trunk = params["L0"] + params["A"] * power(inputs["area"], -params["alpha"])
        size = params["B"] * power(inputs["params"], -params["beta"])
        gain = self.gain(params, inputs) * power(inputs["params"], -params["gamma"])
        return trunk + size - gain


@dataclasses.dataclass(frozen=True)
class MultiPower(ScheduleLaw):
    """R = B (1 - (1 + C eta_k^-gamma S_k(t))^-beta) (Luo et al. 2025, arXiv:2503.12811).

    The authors' code sums over the warm-up too (warmup "full"), which is the default here.
    """

    warmup: str = "full"

    @property
    def kernel(self):
        return (
            Parameter(
                "B", "final gain per unit of drop", linear=True, unit={"loss": 1, "rate": -1}
            ),
            Parameter(
                "C",
                "speed of the response",
                starts=(3.0, 30.0, 300.0),
                unit={"rate": "gamma", "area": -1},
            ),
            Parameter("beta", "exponent of the response", "linear", 1e-3, 5.0, starts=(0.3, 0.6)),
            Parameter("gamma", "how lower rates hasten it", "linear", -1.0, 3.0, starts=(0.0, 0.5)),
        )

    def response(self, params, drop):
        """B (1 - (1 + C eta_k^-gamma S_k)^-beta)."""
        x = params["C"] * jnp.exp(-params["gamma"] * jnp.log(drop.rate)) * drop.area
        return params["B"] * -jnp.expm1(-params["beta"] * jnp.log1p(x))

    def warnings(self, params):
        """gamma >= 1 makes a cliff at the last step pay in full."""
        return _cliff_warnings("gamma", params["gamma"])


@dataclasses.dataclass(frozen=True)
class FunctionalScaling(ScheduleLaw):
    """R = B (1 - (1 + C S_k(t))^-beta): noise that is forgotten as a power of intrinsic time.

    A functional scaling law (Li et al. 2025, arXiv:2509.19189) in the discrete form used here:
    intrinsic time is the area, the signal falls as its power, and the noise that a rate eta keeps
    up is eta times the integral of a forgetting kernel (1 + C u)^-(1 + beta) over the area u gone
    since. Summed by parts, that is this response, with the rises of the warm-up included.
    """

    warmup: str = "full"

    @property
    def kernel(self):
        return (
            Parameter("B", "noise per unit of rate", linear=True, unit={"loss": 1, "rate": -1}),
            Parameter("C", "speed of forgetting", starts=(3.0, 30.0, 300.0), unit={"area": -1}),
            Parameter("beta", "exponent of forgetting", "linear", 1e-3, 5.0, starts=(0.3, 1.0)),
        )

    def response(self, params, drop):
        """B (1 - (1 + C S_k)^-beta)."""
        return params["B"] * -jnp.expm1(-params["beta"] * jnp.log1p(params["C"] * drop.area))


@dataclasses.dataclass(frozen=True)
class PowerRelaxation(ScheduleLaw):
    """R = B (1 - (1 + C S_k(t) / eta_k^rate_exponent)^-exponent): five parameters, as LRAnnealing.

    This project's own law: MultiPower with both exponents of its response fixed and a warm-up whose
    rises are no drops. A drop acts at once, then ever more slowly, as a power of its age. The age
    is the area since the drop at rate_exponent 0 and the steps since it at 1. Assumptions: the gain
    is proportional to the drop, whatever the progress at which it comes; the response depends on
    the age alone; the exponents are the same for all runs. They were chosen on small transformers
    of this project's own (docs/scaling_laws.md, which also says where the law loses).
    """

    exponent: float = 0.125
    rate_exponent: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        if not self.exponent > 0:
            raise ValueError(f"PowerRelaxation: exponent must be positive, got {self.exponent!r}.")
        if not np.isfinite(self.rate_exponent):
            raise ValueError(
                f"PowerRelaxation: rate_exponent must be finite, between 0 (age by area) and 1 (by "
                f"steps) as a rule, got {self.rate_exponent!r}."
            )

    @property
    def kernel(self):
        return (
            Parameter(
                "B", "final gain per unit of drop", linear=True, unit={"loss": 1, "rate": -1}
            ),
            Parameter(
                "C",
                "speed of the response",
                starts=(3.0, 30.0, 300.0, 3000.0),
                unit={"rate": self.rate_exponent, "area": -1},
            ),
        )

    def response(self, params, drop):
        """B (1 - (1 + C S_k / eta_k^rate_exponent)^-exponent)."""
        age = params["C"] * drop.area * jnp.exp(-self.rate_exponent * jnp.log(drop.rate))
        return params["B"] * -jnp.expm1(-self.exponent * jnp.log1p(age))

    def warnings(self, params):
        """A rate exponent of 1 or more makes a cliff at the last step pay in full."""
        del params
        return _cliff_warnings("rate_exponent", self.rate_exponent)


def _cliff_warnings(symbol, power):
    if power < 1:
        return []
    return [
        f"{symbol} is {power:.3g}, at least 1: a drop to almost zero at the very last "
        "step is predicted to gain everything, so schedules found with this fit need a floor."
    ]
