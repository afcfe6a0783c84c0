"""The learning rate of every step, from its formula or from the steps that were logged."""

import numpy as np

JUMP = 0.02  # of the peak: a larger change between logged steps, out of line with its
# neighbours, is a jump


def cosine(steps, *, peak, end=0.0, warmup=0):
    """Linear warm-up (0 at step 0, peak at step warmup - 1), then half a cosine to `end`."""
    time = np.arange(steps)
    share = np.clip((time - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    rates = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * share))
    return _warm(rates, peak, warmup)


def constant(steps, *, peak, warmup=0):
    """Linear warm-up, then the peak."""
    return _warm(np.full(steps, float(peak)), peak, warmup)


def wsd(steps, *, peak, decay_start, end=0.0, warmup=0, shape="linear"):
    """Warm-up, stable, decay: linear or exponential from `decay_start` to the last step."""
    if shape not in ("linear", "exponential"):
        raise ValueError(f"wsd: shape must be 'linear' or 'exponential', got {shape!r}.")
    if shape == "exponential" and not end > 0:
        raise ValueError("wsd: an exponential decay needs end > 0.")
    share = np.clip((np.arange(steps) - decay_start) / (steps - decay_start), 0.0, 1.0)
    if shape == "linear":
        rates = peak * (1 - share) + end * share
    else:
        rates = peak ** (1 - share) * end**share
    return _warm(rates, peak, warmup)


def two_stage(steps, *, peak, switch, end, warmup=0):
    """Warm-up, the peak up to step `switch` - 1, then `end`."""
    return _warm(np.where(np.arange(steps) < switch, float(peak), float(end)), peak, warmup)


def _warm(rates, peak, warmup):
    rates = rates.astype(float)
    if warmup:
        rates[:warmup] = np.linspace(0, peak, warmup)
    return rates


def interpolate(steps, rates, total, *, warmup=None):
    """Every step's rate from some: linear between, except over jumps.

    Between two logged steps with a jump nobody knows where it fell; it is put right after the
    earlier one, and the note says so. Before the first logged step the rate is a linear warm-up
    from 0 if `warmup` says so, otherwise the first rate.

    Args:
      steps: increasing logged steps. rates: their rates.
      total: steps of the schedule; after the last logged step its rate is held.
      warmup: steps of linear warm-up, or None.
    Returns:
      (rates [total], notes).
    """
    notes = []
    dense = np.interp(np.arange(total), steps, rates)
    change = np.diff(rates)
    peak = np.max(rates)
    for i in np.flatnonzero(np.abs(change) > JUMP * peak):
        around = [abs(change[j]) for j in (i - 1, i + 1) if 0 <= j < len(change)]
        gap = steps[i + 1] - steps[i]
        if gap > 1 and abs(change[i]) > 5 * max(around, default=0.0):
            dense[steps[i] + 1 : steps[i + 1]] = rates[i + 1]
            notes.append(
                f"the rate jumps from {rates[i]:.4g} to {rates[i + 1]:.4g} between steps "
                f"{steps[i]} and {steps[i + 1]}; it was put right after step {steps[i]}"
            )
    first = int(steps[0])
    if warmup:
        dense[: min(warmup, total)] = np.linspace(0, rates[0], warmup)[:total]
        notes.append(f"steps 0 to {warmup - 1} are a linear warm-up to {rates[0]:.4g}")
    elif first > 0:
        notes.append(
            f"no rate before step {first}: it was taken as {rates[0]:.4g} from step 0 on; give "
            "warmup= or schedule= if the run warmed up"
        )
    return dense, notes
