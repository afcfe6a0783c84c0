"""Predictions from natural parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from scaling_laws import _data
from scaling_laws.curves._curve import Curve

DENSE = 1024  # of the steps of a bare schedule are computed, the rest interpolated


def predict(law, params, data, steps=None):
    """See `FitResult.predict`."""
    if not hasattr(law, "response"):
        return _table(law, params, data)
    if hasattr(data, "learning_rates"):
        return _curve(law, params, data)
    if len(data) and hasattr(data[0], "learning_rates"):
        return [_curve(law, params, curve) for curve in data]
    rates = np.asarray(data, dtype=float)
    if steps is not None:
        steps = np.asarray(steps)
        return _curve(law, params, Curve(steps, np.ones(len(steps)), rates))
    wanted = np.arange(len(rates))
    chosen = _sample(rates)
    values = _curve(law, params, Curve(chosen, np.ones(len(chosen)), rates))
    if len(chosen) == len(wanted):
        return values
    # Where no rate has been above 0 the area is 0 and the laws are infinite.
    finite = np.isfinite(values) & (values > 0)
    curve = np.exp(PchipInterpolator(chosen[finite], np.log(values[finite]))(wanted))
    return np.where(np.cumsum(rates) > 0, curve, np.inf)


def _sample(rates):
    steps = len(rates)
    if steps <= DENSE:
        return np.arange(steps)
    even = np.linspace(0, steps - 1, DENSE // 2).astype(int)
    early = np.geomspace(1, steps, DENSE // 4).astype(int) - 1
    jumps = np.argsort(-np.abs(np.diff(rates)))[: DENSE // 64]
    near = (jumps[:, None] + np.array([0, 1, 2, 4, 8, 16, 32, 64])[None, :]).ravel()
    return np.unique(np.clip(np.concatenate([even, early, near]), 0, steps - 1))


def _table(law, params, data):
    columns = _data.complete_columns(data, law.inputs)
    with jax.enable_x64(True):
        inputs = {name: jnp.asarray(columns[name]) for name in law.inputs}
        return np.asarray(_evaluate(law, _arrays(params), inputs))


def _curve(law, params, curve):
    _data.check_curve(
        curve, f"predict({law.name}): {getattr(curve, 'name', 'curve')}", losses=False
    )
    inputs, _ = _data.curve_inputs(law, [curve])
    with jax.enable_x64(True):
        return np.asarray(_evaluate(law, _arrays(params), jax.tree.map(jnp.asarray, inputs)))


def _arrays(params):
    """Arrays, so that other values do not compile again."""
    return {symbol: jnp.asarray(value, float) for symbol, value in params.items()}


@partial(jax.jit, static_argnums=0)
def _evaluate(law, params, inputs):
    return law.predict(params, inputs)
