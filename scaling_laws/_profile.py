"""Intervals for parameters by profile likelihood."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_laws import _data, _levenberg, _polish, _robust
from scaling_laws._diagnostics import jacobian_at
from scaling_laws._fit import batch_of, bounds_of, lanes_for
from scaling_laws._intervals import degrees_of_freedom, intervals, mean_curvature, noise_factor
from scaling_laws._result import FitResult


def profile(result: FitResult, symbol, *, level=0.95, num_points=41, span=5.0):
    """Profile likelihood of one parameter: all others fitted anew at each value of it.

    Args:
      result: a fit.
      symbol: the parameter, in the units of the data.
      level: of the interval.
      num_points: values tried, all in one batch.
      span: how far to either side, in delta-method standard errors.
    Returns:
      dict with `values` and `ratios` (twice the rise of the log likelihood) and `interval`, whose
      ends are infinite where the profile does not reach the level inside the span.
    Raises:
      ValueError: the parameter was fixed, or is not one of the law.
    """
    if symbol not in result.law.symbols:
        raise ValueError(f"profile: {symbol!r} is not one of {list(result.law.symbols)}.")
    index = result.law.symbols.index(symbol)
    if not result.free[index]:
        raise ValueError(f"profile: {symbol} was fixed in this fit.")
    own = in_its_unit(result, symbol)
    low, high = intervals(own, 0.6827)[symbol]
    parameter = result.law.parameters[index]
    factor = result.law.factors(own.params, own.prepared.scales)[index]
    ends = np.sort([float(parameter.inner(end / factor)) for end in (low, high)])
    grid = own.z[index] + np.linspace(-span, span, num_points) * (ends[1] - ends[0]) / 2
    grid = np.clip(grid, own.lower[index], own.upper[index])
    solution = solve_at(own, index, grid)
    residuals = jacobian_at(own.law, own.prepared, own.z)[1]
    best = min(float(np.min(solution.objective)), smooth_objective(own, residuals))
    ratios = (solution.objective - best) / likelihood_unit(own)
    with jax.enable_x64(True):
        values = np.asarray(parameter.outer(jnp.asarray(grid))) * factor
    left, right = _crossings(grid, values, ratios, likelihood_cut(own, level), own.z[index])
    if parameter.scale == "complement":
        left, right = right, left
    return {"values": values, "ratios": ratios, "interval": (left, right)}


def in_its_unit(result, symbol):
    """The same fit in units inside in which the parameter's number is its own.

    A = scaled A times scale^alpha: held at a value, the scaled A lets A itself move with alpha. So
    the dimensions whose power is fitted keep the unit of the data.
    """
    parameter = result.law.parameters[result.law.symbols.index(symbol)]
    dimensions = {d for d, power in parameter.unit.items() if isinstance(power, str)}
    if not dimensions:
        return result
    prepared = _data.without_scales(result.prepared, dimensions)
    lower, upper = bounds_of(result.law, prepared, result.settings.fixed)
    z = result.law.inner(result.params, prepared.scales)
    return dataclasses.replace(result, prepared=prepared, z=z, lower=lower, upper=upper)


def solve_at(result, index, values, *, targets=None, start=None):
    """Refits with parameter `index` held at each of the inner `values`, one batch.

    Args:
      targets: [values, points] other log losses, one row for each value.
      start: [values, parameters], default the fit.
    """
    count = len(values)
    lower = np.repeat(result.lower[None], count, axis=0)
    upper = np.repeat(result.upper[None], count, axis=0)
    lower[:, index] = upper[:, index] = values
    start = np.repeat(result.z[None], count, axis=0) if start is None else start.copy()
    start[:, index] = values
    rows = {"bounds": np.arange(count)}
    if targets is not None:
        rows["targets"] = np.arange(count)
    kind, deltas = result.settings.stages()
    return _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(result.prepared, start, lower, upper, targets=targets, which=rows),
        kind=kind,
        delta=deltas[-1],
        tolerance=1e-10,
        max_iterations=400,
        lanes=lanes_for(result.prepared),
    )


def likelihood_unit(result):
    """The rise of the objective that is worth one unit of the likelihood ratio."""
    residuals = jacobian_at(result.law, result.prepared, result.z)[1]
    own = residuals[result.prepared.weights > 0]
    repeated = result.diagnostics.num_points / result.diagnostics.effective_points
    return 0.5 * noise_factor(result, own) * mean_curvature(result, own) * repeated


def likelihood_cut(result, level):
    """Ratio at which a profile interval ends."""
    return float(stats.f.ppf(level, 1, degrees_of_freedom(result)))


def smooth_objective(result, residuals):
    """The objective that the solver minimises, at given residuals."""
    kind, deltas = result.settings.stages()
    with jax.enable_x64(True):
        terms = np.asarray(_robust.value(kind, deltas[-1], jnp.asarray(residuals)))
    return float(np.sum(np.where(result.prepared.weights > 0, result.prepared.weights * terms, 0)))


def _crossings(grid, values, ratios, cut, centre):
    def crossing(rows):
        above = [i for i in rows if ratios[i] > cut]
        if not above:
            return None
        outer = above[0]
        inner = outer + (1 if grid[outer] < centre else -1)
        share = (cut - ratios[inner]) / (ratios[outer] - ratios[inner])
        return float(values[inner] + share * (values[outer] - values[inner]))

    left = [i for i in range(len(grid)) if grid[i] < centre][::-1]
    right = [i for i in range(len(grid)) if grid[i] > centre]
    low, high = crossing(left), crossing(right)
    return -np.inf if low is None else low, np.inf if high is None else high
