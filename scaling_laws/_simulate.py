"""Whether intervals hold: fit data simulated from a fit, and count those that cover it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws import _levenberg, _polish
from scaling_laws._bootstrap import natural_samples, percentiles, refit, resample
from scaling_laws._diagnostics import autocorrelation, jacobian_at
from scaling_laws._fit import batch_of, lanes_for
from scaling_laws._intervals import intervals
from scaling_laws._profile import (
    in_its_unit,
    likelihood_cut,
    likelihood_unit,
    smooth_objective,
    solve_at,
)
from scaling_laws._result import FitResult

METHODS = ("delta", "profile", "bootstrap")


def simulated_coverage(
    result: FitResult,
    num_simulations,
    *,
    key,
    noise=None,
    level=0.95,
    method="delta",
    num_samples=200,
) -> dict[str, float]:
    """Share of simulations in which the interval of each parameter holds the true value.

    The truth is the fit; its predictions get independent normal noise in log loss and are fitted
    again from there, all simulations as one batch.

    Args:
      result: a fit; its data give the design, its parameters the truth.
      num_simulations: how many; the share has a standard error of sqrt(p (1 - p) / n).
      key: of `jax.random`.
      noise: standard deviation of log loss; default, that of the fit's residuals.
      level: of the intervals.
      method: "delta" (`intervals`), "profile" (`profile`) or "bootstrap" (percentiles of pairs).
      num_samples: of each bootstrap.
    Returns:
      symbol -> share, for the parameters that were fitted.
    Raises:
      ValueError: `method` is unknown or `num_simulations` below 1.
    """
    if method not in METHODS:
        raise ValueError(f"simulated_coverage: method must be one of {METHODS}, got {method!r}.")
    if num_simulations < 1:
        raise ValueError(f"simulated_coverage: num_simulations is {num_simulations}, must be >= 1.")
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32)
    rng = np.random.default_rng(seed)
    noise = result.diagnostics.residual_sd if noise is None else noise
    clean = result.prepared.log_losses + jacobian_at(result.law, result.prepared, result.z)[1]
    targets = clean + noise * rng.standard_normal((num_simulations, len(clean)))
    refits = _refits(result, targets)
    symbols = [s for s, free in zip(result.law.symbols, result.free) if free]
    if method == "profile":
        return {symbol: _profile_share(result, refits, symbol, level) for symbol in symbols}
    inside = dict.fromkeys(symbols, 0)
    for one in refits:
        if method == "delta":
            ends = intervals(one, level)
        else:
            counts = resample(rng, one.prepared, num_samples, block=1)
            samples = natural_samples(one, refit(one, counts).z)
            ends = {symbol: percentiles(samples[symbol], level) for symbol in symbols}
        for symbol in symbols:
            low, high = ends[symbol]
            inside[symbol] += low <= result.params[symbol] <= high
    return {symbol: count / num_simulations for symbol, count in inside.items()}


def _refits(result, targets):
    """A `FitResult` for every row of `targets`."""
    kind, deltas = result.settings.stages()
    count = len(targets)
    solution = _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(
            result.prepared,
            np.repeat(result.z[None], count, axis=0),
            result.lower,
            result.upper,
            targets=targets,
            which={"targets": np.arange(count)},
        ),
        kind=kind,
        delta=deltas[-1],
        tolerance=1e-12,
        max_iterations=400,
        lanes=lanes_for(result.prepared),
    )
    samples = natural_samples(result, solution.z)
    residuals = _residuals(
        _polish.Residual(result.law), result.prepared.inputs, solution.z, targets
    )
    used = result.prepared.weights > 0
    made = []
    for row in range(count):
        lag, effective = autocorrelation(residuals[row], result.prepared.groups, used)
        diagnostics = dataclasses.replace(
            result.diagnostics, autocorrelation=lag, effective_points=effective
        )
        made.append(
            dataclasses.replace(
                result,
                z=solution.z[row],
                params={s: float(v[row]) for s, v in samples.items()},
                prepared=dataclasses.replace(result.prepared, log_losses=targets[row]),
                objective=float(solution.objective[row]),
                converged=bool(solution.converged[row]),
                diagnostics=diagnostics,
            )
        )
    return made


def _residuals(residual, inputs, z, targets):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        return np.asarray(_all_residuals(residual, inputs, jnp.asarray(z), jnp.asarray(targets)))


@partial(jax.jit, static_argnums=0)
def _all_residuals(residual, inputs, z, targets):
    return jax.lax.map(lambda row: residual(row[0], inputs, row[1]), (z, targets))


def _profile_share(result, refits, symbol, level):
    """A profile interval holds the truth where the ratio there is below its cut."""
    index = result.law.symbols.index(symbol)
    truth = in_its_unit(result, symbol)
    own = [in_its_unit(one, symbol) for one in refits]
    solution = solve_at(
        truth,
        index,
        np.full(len(own), truth.z[index]),
        targets=np.stack([one.prepared.log_losses for one in own]),
        start=np.stack([one.z for one in own]),
    )
    inside = 0
    for one, held in zip(own, solution.objective):
        best = smooth_objective(one, jacobian_at(one.law, one.prepared, one.z)[1])
        ratio = (held - min(best, held)) / likelihood_unit(one)
        inside += ratio <= likelihood_cut(one, level)
    return inside / len(own)
