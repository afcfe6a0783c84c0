"""The schedule with the lowest final loss that a fitted law predicts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize, minimize_scalar

from scaling_laws._result import FitResult
from scaling_laws.laws._drops import Pairs

FAMILIES = ("cosine", "linear", "wsd", "wsd_exponential", "cliff", "constant")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule and what the law expects of it.

    learning_rates: [steps]. final_loss: predicted at the last step. families: predicted final loss
    of the usual shapes under the same constraints. warnings: where the law should not be believed.
    """

    learning_rates: np.ndarray
    final_loss: float
    families: dict[str, float]
    decay_steps: int
    warnings: tuple[str, ...]


def optimize_schedule(
    result: FitResult,
    *,
    steps,
    peak=None,
    floor=0.0,
    warmup_steps=0,
    monotone=True,
    max_slope=None,
    family=None,
    max_iterations=60,
) -> Schedule:
    """Minimises the predicted loss at the last step over the rate of every step.

    Args:
      result: a fit of a schedule law.
      steps: of the run, warm-up included.
      peak: the highest rate; default, the highest that was fitted.
      floor: the lowest rate after the warm-up.
      warmup_steps: linear from 0, not optimised.
      monotone: the rate may not rise after the warm-up.
      max_slope: the largest fall in one step; needs `monotone`.
      family: search only one shape, "wsd" for example, over where its decay begins and ends.
      max_iterations: of L-BFGS-B.
    Returns:
      A `Schedule`. For `LRAnnealing` without other constraints it is a cliff: the peak, then the
      floor for the last n steps with C lambda^(n-1) = alpha A S1^(-alpha-1).
    Raises:
      ValueError: a constraint is impossible.
    """
    law = result.law
    if not hasattr(law, "response"):
        raise ValueError(f"optimize_schedule: needs a schedule law, got {law.name}.")
    peak = float(result.prepared.scales["rate"]) if peak is None else float(peak)
    _check(steps, peak, floor, warmup_steps, monotone, max_slope, family)
    free = steps - warmup_steps
    warmup = np.linspace(0, peak, warmup_steps, endpoint=False) if warmup_steps else np.zeros(0)
    value_and_slope = _objective(law, result.params, warmup)
    shapes = [family] if family else list(FAMILIES)
    found = {}
    for shape in shapes:
        found[shape] = _best_of_family(shape, value_and_slope, free, peak, floor, max_slope)
    best = min(found, key=lambda shape: found[shape][0])
    value, rates = found[best]
    if family is None:
        rates, value = _refine(
            value_and_slope, rates, value, peak, floor, monotone, max_slope, max_iterations
        )
    families = {shape: float(v) for shape, (v, _) in found.items()}
    warnings = _warnings(result, rates, peak, floor)
    decay = (
        int(free - np.argmax(rates < peak * (1 - 1e-6))) if np.any(rates < peak * (1 - 1e-6)) else 0
    )
    return Schedule(np.concatenate([warmup, rates]), float(value), families, decay, warnings)


def _check(steps, peak, floor, warmup_steps, monotone, max_slope, family):
    if steps < 2 or not 0 <= warmup_steps < steps - 1:
        raise ValueError(
            f"optimize_schedule: steps {steps} and warmup_steps {warmup_steps} leave nothing to "
            "search."
        )
    if not 0 <= floor <= peak or not np.isfinite(peak) or peak <= 0:
        raise ValueError(
            f"optimize_schedule: need 0 <= floor <= peak and peak > 0, got {floor} and {peak}."
        )
    if max_slope is not None and not (monotone and max_slope > 0):
        raise ValueError("optimize_schedule: max_slope must be positive and needs monotone=True.")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"optimize_schedule: family must be one of {FAMILIES}, got {family!r}.")


@partial(jax.jit, static_argnums=0)
def _final_loss(law, params, warmup, rates):
    """The law at the last step, in O(steps): one pair per step."""
    every = jnp.concatenate([warmup, rates])
    flat = jnp.concatenate([jnp.full_like(warmup, rates[0]), rates])
    drop_rates, area_rates = {"area": (flat, every), "full": (every, every), "peak": (flat, flat)}[
        law.warmup
    ]
    total = jnp.cumsum(area_rates)
    steps = every.shape[0]
    floor = 1e-6 * jnp.max(drop_rates)
    pairs = Pairs(
        point=jnp.zeros(steps - 1, int),
        weight=drop_rates[:-1] - drop_rates[1:],
        area=total[-1] - total[:-1],
        elapsed=jnp.arange(steps - 1, 0, -1, dtype=float),
        rate=jnp.maximum(drop_rates[1:], floor),
        start_area=total[:-1],
    )
    inputs = {"area": total[-1:], "drop": pairs}
    return law.predict(params, inputs)[0]


_value_and_grad = jax.jit(jax.value_and_grad(_final_loss, argnums=3), static_argnums=0)


def _objective(law, params, warmup):
    if "params" in law.inputs:
        raise ValueError("optimize_schedule: fit the law at one model size first.")

    def evaluate(rates):
        with jax.enable_x64(True):
            params_x64 = {s: jnp.asarray(v) for s, v in params.items()}
            value, slope = _value_and_grad(law, params_x64, jnp.asarray(warmup), jnp.asarray(rates))
            return float(value), np.asarray(slope)

    return evaluate


def shape_of(family, steps, peak, floor, decay):
    """The usual shapes: `decay` is the share of the steps over which the rate falls."""
    time = np.arange(steps)
    falling = max(round(decay * steps), 1)
    share = np.clip((time - (steps - falling) + 1) / falling, 0.0, 1.0)
    if family == "constant":
        return np.full(steps, peak)
    if family == "cosine":
        return floor + (peak - floor) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / (steps - 1)))
    if family == "linear":
        return peak + (floor - peak) * np.arange(steps) / (steps - 1)
    if family == "cliff":
        return np.where(time < steps - falling, peak, floor)
    if family == "wsd_exponential":
        return np.maximum(peak * (max(floor, 0.01 * peak) / peak) ** share, floor)
    return peak + (floor - peak) * share


def _best_of_family(family, evaluate, steps, peak, floor, max_slope):
    def made(decay):
        rates = shape_of(family, steps, peak, floor, decay)
        return rates if max_slope is None else limit_slope(rates, max_slope)

    if family in ("cosine", "linear", "constant"):
        return evaluate(made(1.0))[0], made(1.0)
    grid = np.geomspace(1 / steps, 1.0, 25)
    values = [evaluate(made(d))[0] for d in grid]
    at = int(np.argmin(values))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    fine = minimize_scalar(
        lambda log_decay: evaluate(made(np.exp(log_decay)))[0],
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    decay = float(np.exp(fine.x)) if fine.fun < values[at] else float(grid[at])
    return evaluate(made(decay))[0], made(decay)


def limit_slope(rates, max_slope):
    """The highest schedule under `rates` that falls no faster than `max_slope`, found backwards.

    A cliff becomes a ramp that begins earlier, so the last rate is kept where the peak allows it.
    """
    line = max_slope * np.arange(len(rates))
    return np.minimum.accumulate((rates + line)[::-1])[::-1] - line


def _refine(evaluate, rates, value, peak, floor, monotone, max_slope, max_iterations):
    """L-BFGS-B over every rate; over every drop where the box alone would break a constraint."""
    scale = peak
    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "maxls": 30}

    def box(x):
        v, g = evaluate(scale * x)
        return 1e3 * v, 1e3 * scale * g

    if max_slope is None:
        bounds = [(floor / scale, 1.0)] * len(rates)
        found = minimize(
            box, rates / scale, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        candidate = scale * np.clip(found.x, floor / scale, 1.0)
        if not (monotone and np.max(np.diff(candidate), initial=0.0) > 1e-9 * peak):
            new = evaluate(candidate)[0]
            return (candidate, new) if new < value else (rates, value)

    def from_drops(u):
        return np.maximum(1.0 - np.cumsum(u), floor / scale)

    def drops(u):
        x = from_drops(u)
        v, g = evaluate(scale * x)
        active = (x > floor / scale) * scale * g
        return 1e3 * v, -1e3 * np.cumsum(active[::-1])[::-1]

    cap = 1.0 if max_slope is None else max_slope / scale
    start = np.clip(-np.diff(rates / scale, prepend=1.0), 0.0, cap)
    found = minimize(
        drops, start, jac=True, method="L-BFGS-B", bounds=[(0.0, cap)] * len(rates), options=options
    )
    candidate = scale * from_drops(np.clip(found.x, 0.0, cap))
    new = evaluate(candidate)[0]
    return (candidate, new) if new < value else (rates, value)


def _warnings(result, rates, peak, floor):
    messages = list(result.law.warnings(result.params))
    fitted = result.data if isinstance(result.data, (list, tuple)) else [result.data]
    lowest = min(float(np.min(np.asarray(c.learning_rates)[c.warmup_steps :])) for c in fitted)
    if np.min(rates) < 0.5 * lowest:
        messages.append(
            f"the schedule goes down to {np.min(rates):.3g}, below anything fitted ({lowest:.3g}); "
            "set floor to that unless the law is trusted there."
        )
    steepest = float(np.max(-np.diff(rates), initial=0.0))
    known = max(float(np.max(-np.diff(c.learning_rates), initial=0.0)) for c in fitted)
    if steepest > max(1.1 * known, 0.02 * peak):
        messages.append(
            "the schedule has a cliff: the law is linear in the rates, so it rewards waiting and "
            "then dropping at once. No run with such a cliff was fitted; set max_slope."
        )
    highest = float(result.prepared.scales["rate"])
    if abs(peak / highest - 1) > 0.05:
        messages.append(
            f"the peak {peak:.3g} is not the fitted one ({highest:.3g}); no published law holds "
            "across peaks."
        )
    return tuple(messages)
