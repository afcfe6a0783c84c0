"""Bootstraps: every resample is a set of weights, all of them one batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_laws import _levenberg, _polish
from scaling_laws._fit import batch_of, lanes_for
from scaling_laws._result import FitResult

TAIL = 0.002  # of the samples at either end, see `standard_error`
LAD_DELTA = 1e-5  # absolute deviation is smoothed this much, far below the residuals


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled data.

    samples: symbol -> [num_samples], natural units. z: the same as the engine has them.
    objectives: of each refit. converged: share of the refits that did. block: points per block.
    """

    samples: dict[str, np.ndarray]
    z: np.ndarray = dataclasses.field(repr=False)
    objectives: np.ndarray = dataclasses.field(repr=False)
    converged: float
    block: int

    @property
    def standard_errors(self) -> dict[str, float]:
        """`standard_error` of every parameter, by symbol."""
        return {s: standard_error(v) for s, v in self.samples.items()}

    def interval(self, symbol, level=0.95) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        return percentiles(self.samples[symbol], level)

    def interval_of(self, function, level=0.95) -> tuple[float, float]:
        """Percentile interval of `function(params)`, called once with arrays by symbol."""
        return percentiles(np.asarray(function(self.samples)), level)


def standard_error(samples) -> float:
    """Standard deviation with the outer samples moved in to the quantiles TAIL and 1 - TAIL.

    An amplitude has a long upper tail: a handful of 4,000 samples then decides the plain standard
    deviation. The divisor makes the answer that of a normal distribution where there is no tail.
    """
    inside = np.clip(samples, *np.quantile(samples, [TAIL, 1 - TAIL]))
    end = stats.norm.ppf(1 - TAIL)
    variance = 1 - 2 * TAIL - 2 * end * stats.norm.pdf(end) + 2 * TAIL * end**2
    return float(np.std(inside, ddof=1) / np.sqrt(variance))


def percentiles(values, level):
    """The central interval that holds a share `level` of the values."""
    if not 0 < level < 1:
        raise ValueError(f"interval: level must be in (0, 1), got {level!r}.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(result: FitResult, num_samples, *, key, block=None) -> Bootstrap:
    """Refits `num_samples` resamples of the data, each from the fitted parameters.

    Args:
      result: a fit.
      num_samples: how many resamples.
      key: of `jax.random`.
      block: 1 draws points (pairs bootstrap, right for independent runs); more draws runs of
        consecutive points within a curve. Default: 1 for a table; for curves, enough to hold the
        autocorrelation of the residuals.
    Raises:
      ValueError: `num_samples` is below 2 or `block` below 1.

    Intervals from it hold for parameters if the law is right. For the curve of a new run use
    `curve_interval`: there the error of the law itself is larger than this.
    """
    if num_samples < 2:
        raise ValueError(f"bootstrap: num_samples must be >= 2, got {num_samples!r}.")
    block = block_for(result) if block is None else block
    if block < 1:
        raise ValueError(f"bootstrap: block must be >= 1, got {block!r}.")
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32)
    counts = resample(np.random.default_rng(seed), result.prepared, num_samples, block)
    solution = refit(result, counts)
    return Bootstrap(
        samples=natural_samples(result, solution.z),
        z=solution.z,
        objectives=solution.objective,
        converged=float(np.mean(solution.converged)),
        block=block,
    )


def block_for(result) -> int:
    """Points per block that hold the autocorrelation: twice its length (1 + r) / (1 - r)."""
    lag = result.diagnostics.autocorrelation
    # The quotient of a lag like 0.8 may round up past a whole number.
    return int(np.ceil(2 * (1 + lag) / (1 - lag) - 1e-9)) if lag > 0 else 1


def refit(result, counts):
    """The engine's solution where each point counts so often, [samples, points], from the fit."""
    prepared, num_samples = result.prepared, len(counts)
    kind, deltas = result.settings.stages()
    return _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(
            prepared,
            np.repeat(result.z[None], num_samples, axis=0),
            result.lower,
            result.upper,
            weights=counts * prepared.weights[None, :],
            which={"weights": np.arange(num_samples)},
        ),
        kind=kind,
        delta=deltas[0] if len(deltas) == 1 else LAD_DELTA,
        tolerance=1e-10,
        max_iterations=200,
        lanes=lanes_for(prepared),
    )


def natural_samples(result, z):
    """Parameters by symbol, each [samples], from inner vectors [samples, parameters]."""
    with jax.enable_x64(True):
        scales = result.prepared.scales
        values = jax.vmap(lambda row: result.law.natural(row, scales))(jnp.asarray(z))
        return {symbol: np.asarray(v) for symbol, v in values.items()}


def resample(rng, prepared, num_samples, block):
    """How often each point is drawn, [num_samples, points]; only points with weight are drawn."""
    counts = np.zeros((num_samples, len(prepared.weights)))
    for group in np.unique(prepared.groups):
        rows = np.flatnonzero((prepared.groups == group) & (prepared.weights > 0))
        points = len(rows)
        if points == 0:
            continue
        length = min(block, points)
        draws = -(-points // length)
        # Blocks wrap around, so that the ends are drawn as often as the middle.
        first = rng.integers(points, size=(num_samples, draws))
        drawn = (first[:, :, None] + np.arange(length)[None, None, :]) % points
        drawn = drawn.reshape(num_samples, -1)[:, :points]
        flat = np.arange(num_samples)[:, None] * points + drawn
        own = np.bincount(flat.ravel(), minlength=num_samples * points)
        counts[:, rows] = own.reshape(num_samples, points)
    return counts
