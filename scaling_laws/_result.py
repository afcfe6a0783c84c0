"""What a fit returns."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from scaling_laws.laws._base import Law, Prepared


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that decide what is minimised."""

    loss: str
    delta: float
    method: str
    drop_largest: int
    fixed: dict[str, float]

    def stages(self):
        """(smooth loss, deltas in turn): absolute deviation is the limit of small deltas."""
        if self.loss != "lad":
            return self.loss, (self.delta,)
        return "huber", tuple(1e-2 * 0.1**i for i in range(8))


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """How far a fit can be trusted.

    hit_rate: share of the starts that came within 0.1 % of the best objective. condition_number:
    of the Jacobian in scaled parameters, its columns at length 1. worst_direction: the combination
    of parameters that the data tell least, in words. bounds_touched: symbols at a bound.
    residual_sd: of log loss. autocorrelation: lag-1, of the residuals along each curve.
    effective_points: points divided by how much the autocorrelation repeats them.
    """

    hit_rate: float
    num_starts: int
    condition_number: float
    worst_direction: str
    bounds_touched: tuple[str, ...]
    residual_sd: float
    autocorrelation: float
    num_points: int
    effective_points: float
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted law.

    params: by symbol, in the units of the data. objective: the summed loss that was minimised.
    z, free, lower, upper, prepared: the fit as the engine saw it, for bootstraps and intervals.
    """

    law: Law
    params: dict[str, float]
    objective: float
    converged: bool
    diagnostics: Diagnostics
    data: Any = dataclasses.field(repr=False)
    prepared: Prepared = dataclasses.field(repr=False)
    z: np.ndarray = dataclasses.field(repr=False)
    free: np.ndarray = dataclasses.field(repr=False)
    lower: np.ndarray = dataclasses.field(repr=False)
    upper: np.ndarray = dataclasses.field(repr=False)
    settings: Settings = dataclasses.field(repr=False)
    start_objectives: np.ndarray = dataclasses.field(repr=False)

    def predict(self, data, steps=None, *, params=None) -> Any:
        """The loss that the law predicts.

        Args:
          data: for a law of the final loss, a dict of its inputs. For a schedule law: a curve (loss
            at its steps), a list of curves (a list), or the learning rate of every step.
          steps: with bare learning rates, where the loss is wanted; default every step.
          params: other parameters than the fitted ones, by symbol.
        """
        from scaling_laws._predict import predict

        return predict(self.law, self.params if params is None else params, data, steps)

    def residuals(self):
        """log(measured / predicted) at every fitted point, in the order of `prepared`."""
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            inputs = jax.tree.map(jnp.asarray, self.prepared.inputs)
            targets = jnp.asarray(self.prepared.log_losses)
            return -np.asarray(self.law.residual(jnp.asarray(self.z), inputs, targets))

    def to_json(self) -> dict[str, Any]:
        """Everything that is needed to say what was done, and to do it again."""
        import jax
        import scipy

        return {
            "law": {"name": self.law.name, **dataclasses.asdict(self.law)},
            "params": self.params,
            "objective": self.objective,
            "converged": self.converged,
            "diagnostics": dataclasses.asdict(self.diagnostics),
            "settings": dataclasses.asdict(self.settings),
            "filter": list(self.prepared.notes),
            "data_sha256": data_hash(self.prepared),
            "versions": {
                "jax": jax.__version__,
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
        }


def data_hash(prepared: Prepared) -> str:
    """A hash of the numbers that were fitted: inputs, losses and weights."""
    import jax

    digest = hashlib.sha256()
    leaves = [*jax.tree.leaves(prepared.inputs), prepared.log_losses, prepared.weights]
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf, dtype=np.float64).tobytes())
    digest.update(repr(sorted(prepared.scales.items())).encode())
    return digest.hexdigest()
