"""Intervals for parameters by the delta method."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_laws import _robust
from scaling_laws._diagnostics import jacobian_at
from scaling_laws._polish import Residual
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


def mean_curvature(result, residuals):
    """How curved the loss is on average over these residuals; 1 for least squares."""
    if result.settings.loss == "lsq":
        return 1.0
    return float(np.mean(_slope_and_density(result, residuals)[1]))


def degrees_of_freedom(result) -> float:
    """Effective points less the fitted parameters, at least 1."""
    return float(max(result.diagnostics.effective_points - np.sum(result.free), 1.0))


def intervals(result: FitResult, level=0.95) -> dict[str, tuple[float, float]]:
    """Interval of every parameter by the delta method, each in the scale in which it is fitted.

    A logarithm for amplitudes, so bounds never go below 0. Uses Student's t with the effective
    points less the parameters as degrees of freedom.
    """
    if not 0 < level < 1:
        raise ValueError(f"interval: level must be in (0, 1), got {level!r}.")
    with jax.enable_x64(True):
        slopes = _slopes(Residual(result.law), jnp.asarray(result.z), result.prepared.scales)
        slopes = np.asarray(slopes)[:, result.free]
    spread = covariance(result)
    quantile = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom(result)))
    ends = {}
    for index, parameter in enumerate(result.law.parameters):
        value = result.params[parameter.symbol]
        width = quantile * float(np.sqrt(slopes[index] @ spread @ slopes[index]))
        if not result.free[index]:
            low = high = value
        elif parameter.scale == "log":
            low, high = value * np.exp(-width), value * np.exp(width)
        elif parameter.scale == "complement":
            low, high = 1 - (1 - value) * np.exp(width), 1 - (1 - value) * np.exp(-width)
        else:
            low, high = value - width, value + width
        ends[parameter.symbol] = (float(low), float(high))
    return ends


def interval(result: FitResult, symbol, level=0.95) -> tuple[float, float]:
    """`intervals` of one parameter."""
    if symbol not in result.law.symbols:
        raise ValueError(f"interval: {symbol!r} is not one of {list(result.law.symbols)}.")
    return intervals(result, level)[symbol]


@partial(jax.jit, static_argnums=0)
def _slopes(residual, z, scales):
    """d (natural parameter, in the scale of its fit) / d z, [parameters, parameters]."""
    law = residual.law

    def seen(z):
        natural = law.natural(z, scales)
        maps = {"log": jnp.log, "complement": lambda x: jnp.log(1 - x), "linear": lambda x: x}
        return jnp.stack([maps[p.scale](natural[p.symbol]) for p in law.parameters])

    return jax.jacfwd(seen)(z)
