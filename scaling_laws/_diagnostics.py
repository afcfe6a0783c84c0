"""How far a fit can be trusted, in numbers and in words."""

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws import _levenberg
from scaling_laws._result import Diagnostics

SAME = 1e-4  # a parameter that moved less from its start, in scaled units, has not moved
BADLY = 1e3  # condition number from which the worst direction is a warning


def diagnose(
    law, prepared, settings, z, free, lower, upper, *, origin, hit_rate, num_starts
) -> Diagnostics:
    """Condition, worst direction, bounds, residual statistics and warnings of a fit."""
    jacobian, residuals = jacobian_at(law, prepared, z)
    used = prepared.weights > 0
    columns = jacobian[used][:, free]
    condition, direction = conditioning(columns, [s for s, f in zip(law.symbols, free) if f])
    touched = tuple(
        symbol
        for i, symbol in enumerate(law.symbols)
        if free[i] and (z[i] - lower[i] < 1e-6 or upper[i] - z[i] < 1e-6)
    )
    params = law.values(z, prepared.scales)
    warnings = list(law.warnings(params))
    unmoved = [
        s
        for i, s in enumerate(law.symbols)
        if free[i] and not law.parameters[i].linear and abs(z[i] - origin[i]) < SAME
    ]
    if unmoved:
        warnings.append(
            f"{', '.join(unmoved)} ended where the search started: the data may not tell it."
        )
    warnings += [f"{symbol} ended at its bound ({params[symbol]:.4g})." for symbol in touched]
    vanished = [
        p.symbol
        for i, p in enumerate(law.parameters)
        if free[i] and p.scale == "log" and z[i] < -20 and p.symbol not in touched
    ]
    warnings += [f"{symbol} is zero to within rounding." for symbol in vanished]
    if condition > BADLY:
        warnings.append(f"the data hardly tell {direction} (condition number {condition:.0f}).")
    if hit_rate < 0.2:
        warnings.append(f"only {hit_rate:.0%} of {num_starts} starts reached this optimum.")
    lag, effective = autocorrelation(residuals, prepared.groups, used)
    degrees = max(int(used.sum()) - int(free.sum()), 1)
    return Diagnostics(
        hit_rate=hit_rate,
        num_starts=num_starts,
        condition_number=condition,
        worst_direction=direction,
        bounds_touched=touched,
        residual_sd=float(np.sqrt(np.sum(residuals[used] ** 2) / degrees)),
        autocorrelation=lag,
        num_points=int(used.sum()),
        effective_points=effective,
        warnings=tuple(warnings),
    )


def jacobian_at(law, prepared, z):
    """(d residual / d z [points, parameters], residuals predicted - measured)."""
    from scaling_laws._polish import Residual

    with jax.enable_x64(True):
        slopes, residuals = _jacobian(
            Residual(law),
            jnp.asarray(z),
            jax.tree.map(jnp.asarray, prepared.inputs),
            jnp.asarray(prepared.log_losses),
        )
        return np.asarray(slopes).T, np.asarray(residuals)


_jacobian = jax.jit(_levenberg.jacobian, static_argnums=0)


def conditioning(columns, symbols):
    """(condition number of columns of length 1, the least determined direction in words)."""
    length = np.linalg.norm(columns, axis=0)
    dead = [s for s, size in zip(symbols, length) if not size > 0]
    if dead:
        return float("inf"), f"{', '.join(dead)}: no point depends on it"
    if len(symbols) == 1:
        return 1.0, f"{symbols[0]} alone"
    _, singular, right = np.linalg.svd(columns / length, full_matrices=False)
    vector = right[-1]
    vector = vector * np.sign(vector[np.argmax(np.abs(vector))])
    strong = [i for i in np.argsort(-np.abs(vector)) if abs(vector[i]) >= 0.3]
    up = [symbols[i] for i in strong if vector[i] > 0]
    down = [symbols[i] for i in strong if vector[i] < 0]
    words = f"{' and '.join(up)} up" + (f" with {' and '.join(down)} down" if down else "")
    condition = singular[0] / max(singular[-1], 1e-300)
    return float(condition), f"{words} (they trade off)" if len(strong) > 1 else words


def autocorrelation(residuals, groups, used):
    """Pooled lag-1 autocorrelation within curves and the points that remain after it."""
    top = bottom = 0.0
    for group in np.unique(groups):
        own = residuals[used & (groups == group)]
        if len(own) > 2 and len(np.unique(groups)) >= 1:
            top += float(np.sum(own[1:] * own[:-1]))
            bottom += float(np.sum(own**2))
    points = float(used.sum())
    if len(np.unique(groups)) == 1 and groups[0] == 0 and not np.any(np.diff(groups)):
        # A table has no order in time.
        return 0.0, points
    lag = float(np.clip(top / max(bottom, 1e-300), 0.0, 0.999))
    return lag, points * (1 - lag) / (1 + lag)
