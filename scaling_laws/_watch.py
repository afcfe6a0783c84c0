"""Where a run in progress will end, or that nobody can know yet."""

import dataclasses

import numpy as np

from scaling_laws._curve_interval import curve_interval
from scaling_laws._fit import fit
from scaling_laws._result import FitResult
from scaling_laws._shared_steps import last_shared_step
from scaling_laws.laws import LRAnnealing

ENOUGH = 0.3  # of the planned fall must be behind a run that has no earlier runs beside it


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `watch` can say.

    status: "predicted" or "not identifiable yet". final_loss, low, high: at the last planned step,
    None when not identifiable. reason: in words. result: the fit behind it.
    """

    status: str
    final_loss: float | None
    low: float | None
    high: float | None
    step: int
    final_step: int
    reason: str
    warnings: tuple[str, ...] = ()
    result: FitResult | None = dataclasses.field(default=None, repr=False)


def watch(curve, law=None, *, earlier=(), level=0.95, key=None, **options) -> Forecast:
    """Predicts the final loss of a run from its log so far and its planned schedule.

    Args:
      curve: points so far; `learning_rates` is the whole plan.
      law: a schedule law; default `LRAnnealing()`.
      earlier: curves of finished runs of the same model and data. They are fitted together with
        the run, so they stand for what it cannot show yet: how much a decay will gain.
      level: of the interval.
      key, options: for `fit`.
    Returns:
      A `Forecast`. Without earlier runs, and before the rate has made a good part of its planned
      fall, the gain of annealing cannot be told from the curve at all, and the status says so.
    """
    law = LRAnnealing() if law is None else law
    if not hasattr(law, "response"):
        raise ValueError(f"watch: needs a schedule law, got {law.name}.")
    rates = np.asarray(curve.learning_rates, dtype=float)
    now, end = int(curve.steps[-1]), len(rates) - 1
    planned = rates.max() - rates[-1]
    fallen = float(rates.max() - rates[curve.warmup_steps : now + 1].min(initial=rates.max()))
    decayed = [c for c in earlier if np.ptp(np.asarray(c.learning_rates)[c.warmup_steps :]) > 0]
    blank = Forecast("not identifiable yet", None, None, None, now, end, "")
    if planned > 0 and not decayed and fallen < ENOUGH * planned:
        return dataclasses.replace(
            blank,
            reason=(
                f"the rate has made {fallen / planned:.0%} of its planned fall by step {now}; "
                f"before {ENOUGH:.0%} a run alone does not tell what the decay will gain. "
                "Give earlier runs with a decay."
            ),
        )
    if planned > 0:
        data, fixed = [*earlier, curve], None
    else:
        # The plan never falls: the response parameters do not matter, whatever they are.
        data = [*decayed, curve] if decayed else [curve]
        fixed = None if decayed else _no_response(law)
    # A branch of an earlier run repeats its points; they count once.
    own = curve.after(last_shared_step(curve, earlier))
    data[-1] = own if len(own.steps) else curve
    try:
        result = fit(law, data, key=key, fixed=fixed, **options)
    except ValueError as error:
        return dataclasses.replace(blank, reason=str(error))
    final = dataclasses.replace(curve, steps=np.array([end]), losses=np.array([1.0]))
    band = curve_interval(result, final, level)
    warnings = (*result.diagnostics.warnings, *band.warnings)
    if not earlier:
        # One run: its own past misses are the measure. They grow with the distance ahead.
        miss = _own_miss(law, curve, key, options)
        width = abs(np.log(band.high[0] / band.prediction[0])) + miss
        low, high = band.prediction[0] * np.exp(-width), band.prediction[0] * np.exp(width)
    else:
        low, high = band.low[0], band.high[0]
    return Forecast(
        status="predicted",
        final_loss=float(band.prediction[0]),
        low=float(low),
        high=float(high),
        step=now,
        final_step=end,
        reason=f"{len(curve.steps)} points of this run and {len(earlier)} earlier runs",
        warnings=warnings,
        result=result,
    )


def _no_response(law):
    return {p.symbol: (p.low + 1e-9 if p.scale != "log" else 1e-30) for p in law.kernel}


def _own_miss(law, curve, key, options):
    """The largest log error on the last quarter of the points when fitted to the rest."""
    cut = int(curve.steps[int(0.75 * len(curve.steps))])
    try:
        past = fit(law, [curve.up_to(cut)], key=key, **options)
    except ValueError:
        return 0.02
    rest = curve.after(cut)
    return float(np.max(np.abs(np.log(past.predict(rest) / rest.losses))))
