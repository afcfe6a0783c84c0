"""Fitting a law: from data and a law to parameters that can be trusted or are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws import _data, _levenberg, _polish, _robust
from scaling_laws._diagnostics import diagnose, jacobian_at
from scaling_laws._result import FitResult, Settings
from scaling_laws._starts import grid_starts
from scaling_laws.laws._base import Law, Prepared

NEAR = 1e-3  # a start has reached the optimum when its objective is this close, relatively
ROUNDING = 1e-6  # of log loss; data without noise are fitted to this by every start that arrives
POLISHED = 3  # best distinct answers that go on to full precision


def fit(
    law: Law,
    data,
    *,
    loss="huber",
    delta=1e-3,
    key=None,
    starts=None,
    max_starts=16,
    fixed=None,
    weights=None,
    drop_largest=0,
    method="lm",
    max_iterations=400,
) -> FitResult:
    """Fits a law to runs by a robust loss of log(predicted / measured), summed over points.

    Args:
      law: an instance, for example `laws.Chinchilla()`.
      data: for a law of the final loss, a dict of arrays; for a schedule law, a list of curves.
      loss: "huber", "lsq", "lad" or "student_t"; of the log residual.
      delta: where "huber" and "student_t" leave the square, in log loss.
      key: None starts from the law's own grid. A key draws as many starts between its extremes;
        the answer must not depend on it, and the hit rate says how nearly that is so.
      starts: instead of these, a list of dicts by symbol or an array [starts, parameters], in the
        law's own units; every one is run.
      max_starts: how many of the grid are run, the best by the closed form first.
      fixed: symbol -> value that is not fitted.
      weights: one per point (of all curves in turn), or one per curve; a point counts so often.
      drop_largest: leave out so many of the largest losses (Besiroglu et al. 2024 leave out 5).
      method: "lm" or "lbfgs".
      max_iterations: for each start.
    Returns:
      A `FitResult`.
    Raises:
      ValueError: the data cannot tell the parameters, or a row cannot be used; the message names
        the row or the parameter.

    >>> import numpy as np
    >>> from scaling_laws import laws
    >>> n = np.geomspace(1e6, 1e9, 12)
    >>> result = fit(laws.PowerLaw("params"), {"params": n, "loss": 1.7 + 400 * n**-0.34})
    >>> {symbol: round(value, 4) for symbol, value in result.params.items()}
    {'E': 1.7, 'A': 400.0, 'alpha': 0.34}
    """
    _check_options(law, loss, delta, method, max_starts, drop_largest)
    prepared = law.prepare(data)
    prepared = _apply_weights(prepared, weights, drop_largest)
    fixed = _check_fixed(law, fixed)
    sketch = law.sketch(data, prepared)
    plain = _unscaled_dimensions(law, fixed)
    prepared, sketch = _data.without_scales(prepared, plain), _data.without_scales(sketch, plain)
    free = np.array([symbol not in fixed for symbol in law.symbols])
    lower, upper = bounds_of(law, prepared, fixed)
    free &= lower < upper
    refuse(law, prepared, free)
    if starts is None:
        start = grid_starts(law, sketch, key)[:max_starts]
    else:
        start = _given_starts(law, starts, prepared.scales)
    for i, _symbol in enumerate(law.symbols):
        if not free[i]:
            start[:, i] = lower[i]
    settings = Settings(
        loss=loss, delta=delta, method=method, drop_largest=drop_largest, fixed=fixed
    )
    first, z, solution = _search(
        law,
        prepared,
        sketch,
        settings,
        start,
        lower,
        upper,
        free,
        max_iterations,
    )
    if free.all():
        z = law.canonical(z)
    objective = evaluate(law, prepared, settings, z)
    exact = 0.5 * ROUNDING**2 * np.sum(prepared.weights)
    hits = first.objective <= (1 + NEAR) * np.min(first.objective) + exact
    origin = start[int(np.argmin(first.objective))]
    diagnostics = diagnose(
        law,
        prepared,
        settings,
        z,
        free,
        lower,
        upper,
        origin=origin,
        hit_rate=float(hits.mean()),
        num_starts=len(start),
    )
    params = law.values(z, prepared.scales)
    return FitResult(
        law=law,
        params=params | {s: float(v) for s, v in fixed.items()},
        objective=objective,
        converged=bool(solution),
        diagnostics=diagnostics,
        data=data,
        prepared=prepared,
        z=z,
        free=free,
        lower=lower,
        upper=upper,
        settings=settings,
        start_objectives=first.objective,
    )


def _search(law, prepared, sketch, settings, start, lower, upper, free, max_iterations):
    """(solutions of all starts, best inner vector, converged)."""
    residual = _polish.Residual(law)
    kind, deltas = settings.stages()

    def run(z, data, delta, tolerance, method):
        return _levenberg.solve(
            residual,
            batch_of(data, z, lower, upper),
            kind=kind,
            delta=delta,
            tolerance=tolerance,
            max_iterations=max_iterations,
            lanes=lanes_for(data),
            room=len(start) if data is sketch else 1,
            method=method,
        )

    first = run(start, sketch, deltas[0], 1e-7, settings.method)
    if not np.isfinite(first.objective).any():
        raise ValueError(
            f"fit({law.name}): the objective is not finite at any of the {len(start)} starts; "
            "give starts of your own, in the units of the data."
        )
    z = _distinct(first)
    last = first
    for delta in deltas:
        last = run(z, prepared, delta, 1e-13, "lm")
        z = last.z
    winner = int(np.argmin(last.objective))
    inside = free & (z[winner] > lower) & (z[winner] < upper)
    answer = _polish.newton(residual, kind, deltas[-1], z[winner].copy(), prepared, inside)
    return first, answer, last.converged[winner]


def _distinct(solution):
    """The best answers, without those that are the same point."""
    chosen = []
    for row in np.argsort(solution.objective, kind="stable"):
        z = solution.z[row]
        if solution.objective[row] > 2 * np.min(solution.objective):
            break
        if all(np.max(np.abs(z - other)) > 0.02 for other in chosen):
            chosen.append(z)
        if len(chosen) == POLISHED:
            break
    return np.array(chosen)


def batch_of(prepared: Prepared, start, lower, upper, *, weights=None, targets=None, which=None):
    """A batch on one set of inputs; rows of `weights` and `targets` are chosen by `which`."""
    problems = len(start)
    index = np.zeros((problems, 4), int)
    if which is not None:
        for column, rows in which.items():
            index[:, {"targets": 1, "weights": 2, "bounds": 3}[column]] = rows
    return _levenberg.Batch(
        start=start,
        inputs=jax.tree.map(lambda leaf: np.asarray(leaf)[None], prepared.inputs),
        targets=prepared.log_losses[None] if targets is None else targets,
        weights=prepared.weights[None] if weights is None else weights,
        lower=np.atleast_2d(lower),
        upper=np.atleast_2d(upper),
        which=index,
    )


def lanes_for(prepared):
    """As many problems at a time as keep the working set in the cache (about a megabyte)."""
    rows = max(np.size(leaf) for leaf in jax.tree.leaves(prepared.inputs))
    return int(np.clip(2 ** int(np.log2(max(16000 / rows, 1))), 1, 64))


def evaluate(law, prepared, settings, z):
    """The objective that the user asked for, at inner vector z."""
    residual = jacobian_at(law, prepared, z)[1]
    with jax.enable_x64(True):
        terms = np.asarray(_robust.value(settings.loss, settings.delta, jnp.asarray(residual)))
    return float(np.sum(np.where(prepared.weights > 0, prepared.weights * terms, 0.0)))


def bounds_of(law, prepared, fixed):
    """Inner bounds, equal where a parameter is fixed."""
    values = {s: fixed.get(s, 1.0) for s in law.symbols}
    factors = law.factors(values, prepared.scales)
    bounds = []
    for parameter, factor in zip(law.parameters, factors):
        if parameter.symbol in fixed:
            factor = 1.0 if parameter.scale != "log" else factor
            value = float(parameter.inner(fixed[parameter.symbol] / factor))
            bounds.append((value, value))
        else:
            factor = 1.0 if parameter.unit.keys() - {"loss"} or parameter.linear else factor
            bounds.append(parameter.inner_bounds(factor))
    lower, upper = np.array(bounds, dtype=float).T
    return lower, upper


def refuse(law, prepared, free):
    """Raises when the data cannot tell the free parameters."""
    points = int(np.sum(prepared.weights > 0))
    needed = int(np.sum(free)) + 1
    if points < needed:
        raise ValueError(
            f"fit({law.name}): {points} points cannot tell {int(np.sum(free))} parameters "
            f"({', '.join(s for s, f in zip(law.symbols, free) if f)}); at least {needed} are "
            "needed, and three times as many for useful intervals. Fix some with fixed=."
        )
    for name in law.inputs:
        # The exponents of an input are the powers to which the amplitudes carry its unit.
        powers = {str(p.unit[name]).lstrip("-") for p in law.parameters if name in p.unit}
        fitted = [s for s, f in zip(law.symbols, free) if f and s in powers]
        if fitted and name in prepared.inputs:
            _refuse_constant(law, prepared, name, " and ".join(fitted))
    if hasattr(law, "response"):
        _refuse_no_decay(law, prepared, free)


def _refuse_constant(law, prepared, name, symbols):
    column = np.asarray(prepared.inputs[name])[prepared.weights > 0]
    if np.ptp(column) <= 1e-9 * np.max(np.abs(column)):
        raise ValueError(
            f"fit({law.name}): {name} is the same in every run, so {symbols} cannot be told from "
            f"the constant; add runs with another {name} or use a law without it."
        )


def _refuse_no_decay(law, prepared, free):
    symbols = [p.symbol for p in law.kernel if free[law.symbols.index(p.symbol)]]
    falling = np.asarray(prepared.inputs["drop"].weight) > 0
    if symbols and not falling.any():
        raise ValueError(
            f"fit({law.name}): no learning rate falls before the last logged point, so "
            f"{', '.join(symbols)} cannot be identified from these curves; add a run whose rate "
            "decays, or fix them with fixed=."
        )


def _check_options(law, loss, delta, method, max_starts, drop_largest):
    if not isinstance(law, Law):
        raise ValueError(f"fit: law must be an instance such as laws.Chinchilla(), got {law!r}.")
    if loss not in _robust.KINDS:
        raise ValueError(f"fit: loss must be one of {_robust.KINDS}, got {loss!r}.")
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"fit: delta must be a positive number of log loss, got {delta!r}.")
    if method not in ("lm", "lbfgs"):
        raise ValueError(f"fit: method must be 'lm' or 'lbfgs', got {method!r}.")
    if max_starts < 1 or drop_largest < 0:
        raise ValueError(
            f"fit: max_starts must be >= 1 and drop_largest >= 0, got {max_starts} and "
            f"{drop_largest}."
        )


def _check_fixed(law, fixed):
    fixed = dict(fixed or {})
    for symbol, value in fixed.items():
        if symbol not in law.symbols:
            raise ValueError(
                f"fit({law.name}): fixed names {symbol!r}; the law has {list(law.symbols)}."
            )
        if not np.isfinite(value):
            raise ValueError(f"fit({law.name}): fixed[{symbol!r}] is {value}.")
    return fixed


def _unscaled_dimensions(law, fixed):
    """Dimensions that keep the user's unit: an amplitude is fixed there, its exponent is not.

    In any other unit the fixed number would depend on the exponent that is being fitted.
    """
    return {
        dimension
        for parameter in law.parameters
        if parameter.symbol in fixed
        for dimension, power in parameter.unit.items()
        if isinstance(power, str) and power.lstrip("-") not in fixed
    }


def _apply_weights(prepared, weights, drop_largest):
    values = prepared.weights.copy()
    notes = prepared.notes
    if weights is not None:
        given = np.asarray(weights, dtype=float)
        if given.ndim != 1 or np.any(given < 0) or not np.all(np.isfinite(given)):
            raise ValueError("fit: weights must be finite and >= 0, one per point or curve.")
        if len(given) == len(values):
            values = given[prepared.order]
        elif len(given) == len(np.unique(prepared.groups)):
            values = given[prepared.groups]
        else:
            raise ValueError(
                f"fit: {len(given)} weights for {len(values)} points in "
                f"{len(np.unique(prepared.groups))} curves."
            )
    if drop_largest:
        if drop_largest >= len(values):
            raise ValueError(f"fit: drop_largest is {drop_largest} of {len(values)} points.")
        largest = np.argsort(-prepared.log_losses, kind="stable")[:drop_largest]
        values[largest] = 0.0
        notes = (*notes, f"left out the {drop_largest} largest losses")
    return dataclasses.replace(prepared, weights=values, notes=notes)


def _given_starts(law, starts, scales):
    if not isinstance(starts, np.ndarray):
        starts = [[row[s] for s in law.symbols] for row in starts]
    rows = np.atleast_2d(np.asarray(starts, dtype=float))
    if rows.shape[1] != len(law.symbols) or not np.all(np.isfinite(rows)):
        raise ValueError(
            f"fit({law.name}): starts must be finite, one column for each of {law.symbols}; "
            f"got shape {rows.shape}."
        )
    return np.stack([law.inner(dict(zip(law.symbols, row)), scales) for row in rows])
