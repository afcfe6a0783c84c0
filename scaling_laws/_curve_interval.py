"""Intervals for the curve of a run that was not fitted, with the error of the law itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scaling_laws import _data, _levenberg, _polish
from scaling_laws._diagnostics import jacobian_at
from scaling_laws._fit import batch_of, lanes_for
from scaling_laws._intervals import covariance
from scaling_laws._result import FitResult
from scaling_laws._shared_steps import last_shared_step
from scaling_laws.laws._schedule import TRUNK


@dataclasses.dataclass(frozen=True)
class CurveInterval:
    """A predicted curve with its interval.

    prediction, low, high: [points]. noise, parameter_error, model_error, extrapolation_error:
    standard deviations of log loss; model_error is measured on fitted runs that were left out in
    turn, extrapolation_error, which is 0 up to the largest fitted area, on the later half of the
    fitted areas. coverage: share of the points of the runs left out inside intervals made without
    them, or None where only one run was fitted.
    """

    prediction: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: float
    parameter_error: np.ndarray
    model_error: float
    extrapolation_error: np.ndarray
    coverage: float | None
    warnings: tuple[str, ...]


def curve_interval(result: FitResult, curve, level=0.95) -> CurveInterval:
    """Interval for the losses of `curve`, a run that was not fitted.

    Four errors add in square: noise of a point, error of the parameters (widened by the
    autocorrelation of the residuals), error of the law, the root mean square log error on each
    fitted run when it is left out of the fit (its steps shared with other runs not counted), and,
    beyond the fitted areas, `extrapolation_growth` times the logarithm of how far beyond. The last
    two dominate on real curves; a bootstrap of points does not see them.
    """
    if not 0 < level < 1:
        raise ValueError(f"curve_interval: level must be in (0, 1), got {level!r}.")
    prediction = np.log(result.predict(curve))
    inputs, _ = _data.curve_inputs(result.law, [curve])
    inputs = _data.scale_inputs(inputs, result.prepared.scales)
    slopes = _slopes(result, inputs, len(curve.steps))
    parameter = np.sqrt(np.einsum("np,pq,nq->n", slopes, covariance(result), slopes))
    errors = left_out_errors(result)
    warnings = []
    sizes = {name: float(np.sqrt(np.mean(e**2))) for name, e in errors.items()}
    noise = point_noise(result)
    if not sizes:
        warnings.append(
            "no fitted run can be left out in turn, so the error of the law is not measured and "
            "the interval is too narrow."
        )
    model = float(np.sqrt(np.mean(np.square(list(sizes.values()))))) if sizes else 0.0
    beyond = np.log(inputs["area"] / np.max(result.prepared.inputs["area"]))
    extrapolation = extrapolation_growth(result) * np.maximum(beyond, 0.0)
    total = np.sqrt(noise**2 + parameter**2 + model**2 + extrapolation**2)
    width = quantile(level, len(sizes)) * total
    return CurveInterval(
        prediction=np.exp(prediction),
        low=np.exp(prediction - width),
        high=np.exp(prediction + width),
        noise=noise,
        parameter_error=parameter,
        model_error=model,
        extrapolation_error=extrapolation,
        coverage=_left_out_coverage(errors, sizes, noise, level),
        warnings=tuple(warnings),
    )


def coverage(result: FitResult, curves, level=0.95) -> dict[str, float]:
    """Share of the points of runs that were not fitted inside their intervals, by run."""
    shares = {}
    fitted = _data.as_curves(result.data, "coverage")
    for curve in curves:
        rest = curve.after(last_shared_step(curve, fitted))
        if not len(rest.steps):
            continue
        band = curve_interval(result, rest, level)
        inside = (rest.losses >= band.low) & (rest.losses <= band.high)
        shares[curve.name] = float(np.mean(inside))
    return shares


def quantile(level, runs):
    """Quantile of a new run's error, in units of the root mean square over `runs` left-out runs.

    Student's t with one degree of freedom per run: the mean square is about zero, no mean is taken
    off it, and the points of a run err together.
    """
    return float(stats.t.ppf((1 + level) / 2, runs) if runs else stats.norm.ppf((1 + level) / 2))


def point_noise(result):
    """Standard deviation of the point-to-point noise, from second differences along curves."""
    residuals, groups = result.residuals(), result.prepared.groups
    jumps = [
        np.diff(residuals[groups == group], n=2)
        for group in np.unique(groups)
        if np.sum(groups == group) > 4
    ]
    if not jumps:
        return result.diagnostics.residual_sd
    return float(1.4826 * np.median(np.abs(np.concatenate(jumps))) / np.sqrt(6))


def left_out_errors(result: FitResult) -> dict[int, np.ndarray]:
    """log(measured / predicted) on the unshared points of each fitted run, fitted without it."""
    curves = _data.as_curves(result.data, "curve_interval")
    prepared = result.prepared
    groups = np.unique(prepared.groups)
    weights = np.where(prepared.groups[None, :] == groups[:, None], 0.0, prepared.weights[None, :])
    falling = np.zeros(len(prepared.groups))
    drop = prepared.inputs["drop"]
    np.add.at(falling, drop.point, np.maximum(drop.weight, 0))
    able = [
        i
        for i, row in enumerate(weights)
        if np.sum(row > 0) > np.sum(result.free) and np.any(falling[row > 0] > 0)
    ]
    if len(groups) < 2 or not able:
        return {}
    kind, deltas = result.settings.stages()
    solution = _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(
            prepared,
            np.repeat(result.z[None], len(able), axis=0),
            result.lower,
            result.upper,
            weights=weights[able],
            which={"weights": np.arange(len(able))},
        ),
        kind=kind,
        delta=deltas[-1],
        tolerance=1e-8,
        max_iterations=200,
        lanes=lanes_for(prepared),
    )
    errors = {}
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, prepared.inputs)
        targets = jnp.asarray(prepared.log_losses)
        for row, z in zip(able, solution.z):
            group = int(groups[row])
            others = [c for i, c in enumerate(curves) if i != group]
            unseen = curves[group].steps > last_shared_step(curves[group], others)
            residual = -np.asarray(result.law.residual(jnp.asarray(z), inputs, targets))
            own = residual[prepared.groups == group][unseen]
            if len(own):
                errors[group] = own
    return errors


def extrapolation_growth(result: FitResult) -> float:
    """Log error per unit of log area beyond the fitted areas: that of the trunk, fitted to a half.

    L0, A and alpha are fitted anew to the points up to half of the largest area, the response is
    kept (the early half may hold no decay), and the error on the later points is taken to be
    proportional to log(area / half).
    """
    prepared, symbols = result.prepared, result.law.symbols
    half = 0.5 * np.max(prepared.inputs["area"])
    early = prepared.inputs["area"] <= half
    later = ~early & (prepared.weights > 0)
    trunk = result.free & np.isin(symbols, [p.symbol for p in TRUNK])
    if np.sum(early & (prepared.weights > 0)) <= 2 * np.sum(trunk) or not later.any():
        return 0.0
    kind, deltas = result.settings.stages()
    solution = _levenberg.solve(
        _polish.Residual(result.law),
        batch_of(
            prepared,
            result.z[None],
            np.where(trunk, result.lower, result.z),
            np.where(trunk, result.upper, result.z),
            weights=(prepared.weights * early)[None],
        ),
        kind=kind,
        delta=deltas[-1],
        tolerance=1e-8,
        max_iterations=200,
        lanes=1,
    )
    errors = jacobian_at(result.law, prepared, solution.z[0])[1][later]
    beyond = np.log(prepared.inputs["area"][later] / half)
    return float(np.sqrt(np.sum(errors**2) / np.sum(beyond**2)))


def _left_out_coverage(errors, sizes, noise, level):
    if len(errors) < 2:
        return None
    shares = []
    for name, own in errors.items():
        rest = [size for other, size in sizes.items() if other != name]
        scale = np.sqrt(np.mean(np.square(rest)) + noise**2)
        shares.append(np.mean(np.abs(own) <= quantile(level, len(rest)) * scale))
    return float(np.mean(shares))


def _slopes(result, inputs, points):
    """d log prediction / d z at scaled inputs, [points, free]."""
    with jax.enable_x64(True):
        slopes, _ = _levenberg.jacobian(
            _polish.Residual(result.law),
            jnp.asarray(result.z),
            jax.tree.map(jnp.asarray, inputs),
            jnp.zeros(points),
        )
        return np.asarray(slopes).T[:, result.free]
