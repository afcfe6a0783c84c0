"""Intervals for parameters: delta method and profile likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_laws import _levenberg, _polish, _robust
from scaling_laws._diagnostics import jacobian_at
from scaling_laws._fit import batch_of, lanes_for
from scaling_laws._result import FitResult

WINDOW = 0.6  # of the noise, around 0


def covariance(result: FitResult):
    """Covariance of the free inner parameters, widened by the autocorrelation along curves.

    Least squares: s^2 (J'J)^-1. A robust loss: the sandwich (J'KJ)^-1 J'psi^2 J (J'KJ)^-1, which
    holds where the noise differs between points; K counts the points within a window of the noise
    (Powell's estimator of the density at 0, as in quantile regression). Points / effective points
    multiplies it where residuals repeat each other.
    """
    jacobian, residuals = jacobian_at(result.law, result.prepared, result.z)
    weights = result.prepared.weights
    used = weights > 0
    columns, own = jacobian[used][:, result.free], residuals[used]
    repeated = result.diagnostics.num_points / result.diagnostics.effective_points
    scaled = columns * np.sqrt(weights[used])[:, None]
    if result.settings.loss == "lsq":
        factor = noise_factor(result, own)
        return np.linalg.pinv(scaled.T @ scaled, hermitian=True) * factor * repeated
    psi, density = _slope_and_density(result, own)
    bread = np.linalg.pinv((scaled * density[:, None]).T @ scaled, hermitian=True)
    tilted = columns * (weights[used] * psi)[:, None]
    points = len(own)
    correction = points / max(points - columns.shape[1], 1)
    return bread @ (tilted.T @ tilted) @ bread * correction * repeated


def _slope_and_density(result, residuals):
    """psi of each residual, and the curvature that its loss has on average around it."""
    kind, delta = result.settings.loss, result.settings.delta
    if kind == "lad":
        kind, delta = "huber", 1e-7
    with jax.enable_x64(True):
        slope, curvature = _robust.weights(kind, delta, jnp.asarray(residuals))
        slope, curvature = np.asarray(slope), np.asarray(curvature)
    window = WINDOW * 1.4826 * float(np.median(np.abs(residuals)))
    if kind == "huber" and delta < window:
        # delta below the noise: the few points inside it would be counted, not averaged.
        curvature = (np.abs(residuals) <= window) * delta / window
    return slope * residuals, curvature


def noise_factor(result, residuals):
    """Squared error of a location estimate from these residuals, per point."""
    points, free = len(residuals), int(np.sum(result.free))
    correction = points / max(points - free, 1)
    if result.settings.loss == "lsq":
        return float(np.mean(residuals**2)) * correction
    psi, curvature = _slope_and_density(result, residuals)
    return float(np.mean(psi**2)) / max(float(np.mean(curvature)), 1e-300) ** 2 * correction


def interval(result: FitResult, symbol, level=0.95) -> tuple[float, float]:
    """Interval of one parameter by the delta method, taken in the scale in which it is fitted.

    A logarithm for amplitudes, so bounds never go below 0. Uses Student's t with the effective
    points less the parameters as degrees of freedom.
    """
    if symbol not in result.law.symbols:
        raise ValueError(f"interval: {symbol!r} is not one of {list(result.law.symbols)}.")
    index = result.law.symbols.index(symbol)
    value = result.params[symbol]
    if not result.free[index]:
        return value, value
    parameter = result.law.parameters[index]

    def seen(z):
        natural = result.law.natural(z, result.prepared.scales)[symbol]
        if parameter.scale == "log":
            return jnp.log(natural)
        return jnp.log(1 - natural) if parameter.scale == "complement" else natural

    with jax.enable_x64(True):
        slope = np.asarray(jax.grad(seen)(jnp.asarray(result.z)))[result.free]
    error = float(np.sqrt(slope @ covariance(result) @ slope))
    degrees = max(result.diagnostics.effective_points - np.sum(result.free), 1.0)
    width = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    if parameter.scale == "log":
        return float(value * np.exp(-width)), float(value * np.exp(width))
    if parameter.scale == "complement":
        return float(1 - (1 - value) * np.exp(width)), float(1 - (1 - value) * np.exp(-width))
    return value - width, value + width


def profile(result: FitResult, symbol, *, level=0.95, num_points=41, span=4.0):
    """Profile likelihood of one parameter: all others fitted anew at each value of it.

    Args:
      result: a fit.
      symbol: the parameter; its inner value is moved, so an amplitude is that of the scaled data.
      level: of the interval.
      num_points: values tried, all in one batch.
      span: how far to either side, in delta-method standard errors.
    Returns:
      dict with `values` and `ratios` (twice the rise of the log likelihood) and `interval`, whose
      ends are infinite where the profile does not reach the level inside the span.
    """
    index = result.law.symbols.index(symbol)
    if not result.free[index]:
        raise ValueError(f"profile: {symbol} was fixed in this fit.")
    column = int(np.sum(result.free[:index]))
    error = float(np.sqrt(covariance(result)[column, column]))
    grid = result.z[index] + np.linspace(-span, span, num_points) * error
    grid = np.clip(grid, result.lower[index], result.upper[index])
    lower = np.repeat(result.lower[None], num_points, axis=0)
    upper = np.repeat(result.upper[None], num_points, axis=0)
    lower[:, index] = upper[:, index] = grid
    start = np.repeat(result.z[None], num_points, axis=0)
    start[:, index] = grid
    kind, deltas = result.settings.stages()
    solution = _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(result.prepared, start, lower, upper, which={"bounds": np.arange(num_points)}),
        kind=kind,
        delta=deltas[-1],
        tolerance=1e-10,
        max_iterations=400,
        lanes=lanes_for(result.prepared),
    )
    residuals = jacobian_at(result.law, result.prepared, result.z)[1]
    used = result.prepared.weights > 0
    factor = noise_factor(result, residuals[used]) * _curvature(result, residuals[used])
    repeated = result.diagnostics.num_points / result.diagnostics.effective_points
    best = min(float(np.min(solution.objective)), _smooth_objective(result, residuals))
    ratios = 2 * (solution.objective - best) / (factor * repeated)
    degrees = max(result.diagnostics.effective_points - np.sum(result.free), 1.0)
    cut = float(stats.f.ppf(level, 1, degrees))
    parameter = result.law.parameters[index]
    values = _natural_axis(result, solution.z, symbol)
    low, high = _crossings(grid, values, ratios, cut, result.z[index])
    if parameter.scale == "complement":
        low, high = high, low
    return {"values": values, "ratios": ratios, "interval": (low, high)}


def _curvature(result, residuals):
    if result.settings.loss == "lsq":
        return 1.0
    return float(np.mean(_slope_and_density(result, residuals)[1]))


def _smooth_objective(result, residuals):
    kind, deltas = result.settings.stages()
    with jax.enable_x64(True):
        terms = np.asarray(_robust.value(kind, deltas[-1], jnp.asarray(residuals)))
    return float(np.sum(np.where(result.prepared.weights > 0, result.prepared.weights * terms, 0)))


def _natural_axis(result, z, symbol):
    with jax.enable_x64(True):
        scales = result.prepared.scales
        natural = jax.vmap(lambda row: result.law.natural(row, scales)[symbol])(jnp.asarray(z))
        return np.asarray(natural)


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
