"""What logs of real runs need before a law can be fitted, and a note of every change."""

import numpy as np

SPIKE_WINDOW = 9  # points; odd
SPIKE_SCORE = 12.0  # robust standard deviations above the running median
SPIKE_SIZE = 0.02  # and this far above it in log loss


def repair_rows(steps, losses, rates, *, duplicates="last", spikes="drop", where="curves.repair"):
    """Sorted, unique, finite rows, and what was done to get them.

    Args:
      steps, losses: [rows]; `rates` may be None.
      duplicates: "last", "first" or "mean" of rows with the same step. After a restart the run
        goes on from the later rows, so everything the first attempt logged past the restart goes.
      spikes: "drop" single losses far above their neighbours, or "keep".
    Returns:
      (steps, losses, rates, notes). rates may hold NaN where the log has none.
    Raises:
      ValueError: nothing is left, or steps are not whole numbers.
    """
    if duplicates not in ("last", "first", "mean"):
        raise ValueError(f"{where}: duplicates must be last, first or mean, got {duplicates!r}.")
    if spikes not in ("drop", "keep"):
        raise ValueError(f"{where}: spikes must be drop or keep, got {spikes!r}.")
    notes: list[str] = []
    steps, losses = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    rates = np.full(len(steps), np.nan) if rates is None else np.asarray(rates, dtype=float)
    rows = np.isfinite(steps)
    _note(notes, ~rows, "rows without a step", np.arange(len(steps)), "row")
    broken = rows & ~(np.isfinite(losses) & (losses > 0))
    blank = broken & np.isnan(losses)
    _note(notes, blank, "empty or NaN losses", steps)
    _note(notes, broken & ~blank, "losses that are infinite, zero or negative", steps)
    keep = rows & ~broken
    steps, losses, rates = steps[keep], losses[keep], rates[keep]
    if len(steps) == 0:
        raise ValueError(f"{where}: no row has both a step and a positive finite loss.")
    odd = np.flatnonzero((steps != np.floor(steps)) | (steps < 0))
    if len(odd):
        raise ValueError(
            f"{where}: row {odd[0]} has step {steps[odd[0]]}; steps are whole numbers >= 0."
        )
    steps = steps.astype(int)
    steps, losses, rates = _restarts(steps, losses, rates, duplicates, notes)
    if np.any(np.diff(steps) < 0):
        notes.append("sorted the rows by step")
    order = np.argsort(steps, kind="stable")
    steps, losses, rates = _merge(steps[order], losses[order], rates[order], duplicates, notes)
    if spikes == "drop":
        bad = find_spikes(losses)
        _note(notes, bad, "spikes", steps)
        steps, losses, rates = steps[~bad], losses[~bad], rates[~bad]
    gaps = np.diff(steps)
    if len(gaps) > 2:
        wide = np.flatnonzero(gaps > 4 * np.median(gaps))
        notes += [f"no points between steps {steps[i]} and {steps[i + 1]}" for i in wide[:5]]
    return steps, losses, rates, notes


def find_spikes(losses):
    """Mask of losses far above the median of their neighbours; falls at the start are not."""
    logs = np.log(losses)
    half = SPIKE_WINDOW // 2
    padded = np.pad(logs, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW)
    rest = logs - np.median(windows, axis=1)
    scale = 1.4826 * np.median(np.abs(rest - np.median(rest))) + 1e-12
    # A window at the edge repeats the edge: there a steep fall would look like a spike.
    spikes = (rest > SPIKE_SCORE * scale) & (rest > SPIKE_SIZE)
    spikes[:half] &= rest[:half] > 0.5
    return spikes


def repair_rates(steps, rates, notes, *, where="curves.repair"):
    """Logged rates without the ones that cannot be: blanks, and a 0 that the run never had."""
    usable = np.isfinite(rates) & (rates >= 0)
    _note(notes, ~np.isfinite(rates), "empty learning rates (interpolated)", steps)
    if np.any(rates[np.isfinite(rates)] < 0):
        raise ValueError(
            f"{where}: the learning rate at step {steps[np.flatnonzero(rates < 0)[0]]} is negative."
        )
    positive = np.flatnonzero(usable & (rates > 0))
    if len(positive) == 0:
        raise ValueError(
            f"{where}: no logged learning rate is above 0; give the schedule= it was trained with."
        )
    zero = usable & (rates == 0)
    if zero[-1] and rates[positive[-1]] > 0.02 * np.max(rates[positive]):
        fake = np.zeros(len(rates), bool)
        fake[positive[-1] + 1 :] = zero[positive[-1] + 1 :]
        _note(notes, fake, "zero learning rates after the end (not a drop)", steps)
        usable &= ~fake
    inner = zero & (np.arange(len(rates)) > positive[0]) & (np.arange(len(rates)) < positive[-1])
    _note(notes, inner, "zero learning rates inside the run (interpolated)", steps)
    usable &= ~inner
    return usable


def _restarts(steps, losses, rates, duplicates, notes):
    """A step far back begins a second attempt; the rows it repeats are replaced by policy."""
    if duplicates != "last":
        return steps, losses, rates
    keep = np.ones(len(steps), bool)
    for row in np.flatnonzero(np.diff(steps) < 0) + 1:
        attempt = steps[row : row + 3]
        # Shuffled rows jump back and forth; a restart goes on upwards from where it fell back to.
        if len(attempt) < 2 or np.any(np.diff(attempt) <= 0) or np.mean(np.diff(steps) < 0) > 0.2:
            continue
        if steps[row] not in steps[:row] and steps[row] < np.min(steps[:row]):
            continue
        stale = (np.arange(len(steps)) < row) & (steps >= steps[row]) & keep
        keep &= ~stale
        notes.append(
            f"restarted from step {steps[row]}: {int(stale.sum())} rows of the earlier attempt "
            "left out"
        )
    return steps[keep], losses[keep], rates[keep]


def _merge(steps, losses, rates, duplicates, notes):
    values, first, counts = np.unique(steps, return_index=True, return_counts=True)
    if len(values) == len(steps):
        return steps, losses, rates
    notes.append(
        f"{len(steps) - len(values)} repeated steps merged ({duplicates}), the first at step "
        f"{values[counts > 1][0]}"
    )
    if duplicates == "mean":
        group = np.repeat(np.arange(len(values)), counts)
        merged = np.bincount(group, losses) / counts
        return values, merged, rates[first + counts - 1]
    rows = first if duplicates == "first" else first + counts - 1
    return values, losses[rows], rates[rows]


def _note(notes, mask, what, steps, unit="step"):
    count = int(np.sum(mask))
    if count:
        at = np.asarray(steps)[np.flatnonzero(mask)[0]]
        notes.append(f"{count} {what}, the first at {unit} {at:.0f}")
