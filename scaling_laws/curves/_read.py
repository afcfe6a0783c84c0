"""From a log file to curves."""

from pathlib import Path

import numpy as np

from scaling_laws.curves import _repair, _schedules, _tables
from scaling_laws.curves._curve import Curve


def read(
    path,
    *,
    step=None,
    loss=None,
    learning_rate=None,
    split="auto",
    schedule=None,
    steps=None,
    warmup=None,
    first_step=0,
    duplicates="last",
    spikes="drop",
    skip_until=0,
    params=None,
    name=None,
) -> Curve:
    """One curve from a CSV, JSON lines, Parquet or TensorBoard log, repaired.

    Args:
      path: the file (a folder for TensorBoard).
      step, loss, learning_rate: names of columns; default, the usual ones.
      split: "train", "validation" or "auto" (validation if the log has it) where `loss` is not
        named; of columns that are both there, a law wants the one with the least noise.
      schedule: the learning rate of every step as an array, or a function from the number of steps
        to it. Best; without it the logged rates are interpolated.
      steps: length of the schedule; default, up to the last logged step.
      warmup: steps of linear warm-up, for interpolated schedules.
      first_step: what the log calls the first update: 0, or 1 where it counts finished updates.
      duplicates, spikes: see `repair`.
      skip_until: leave out points before this step, such as those of the warm-up.
      params: model size. name: default, the file's.
    Returns:
      A `Curve` whose `.repairs` says what was changed, and where.
    Raises:
      ValueError: what cannot be repaired, with its row or step.
    """
    columns = _tables.read_columns(path)
    step_name = _tables.pick(columns, step, _tables.STEP, "step", path)
    if step_name is None:
        raise ValueError(
            f"curves.read: {path} has no step column among {sorted(columns)}; name it with step=."
        )
    loss_name = _loss_column(columns, loss, split, path)
    rate_name = _tables.pick(columns, learning_rate, _tables.RATE, "learning rate", path)
    rates = columns[rate_name] if rate_name is not None else None
    return repair(
        columns[step_name] - first_step,
        columns[loss_name],
        rates,
        schedule=schedule,
        steps=steps,
        warmup=warmup,
        duplicates=duplicates,
        spikes=spikes,
        skip_until=skip_until,
        params=params,
        name=Path(path).stem if name is None else name,
        notes=(f"loss from column {loss_name!r}",) if loss is None else (),
    )


def repair(
    steps_logged,
    losses,
    learning_rates=None,
    *,
    schedule=None,
    steps=None,
    warmup=None,
    duplicates="last",
    spikes="drop",
    skip_until=0,
    params=None,
    name="curve",
    notes=(),
) -> Curve:
    """A curve from columns as they were logged.

    Args:
      steps_logged, losses, learning_rates: [rows]; rates may be missing in some or all rows.
      schedule, steps, warmup, skip_until, params, name: see `read`.
      duplicates: "last", "first" or "mean"; "last" also drops what a restart replaced.
      spikes: "drop" or "keep".
      notes: to begin the report with.
    """
    where = f"curves.repair({name})"
    rate_steps, logged = _logged_rates(steps_logged, learning_rates)
    at, values, _, changes = _repair.repair_rows(
        steps_logged, losses, learning_rates, duplicates=duplicates, spikes=spikes, where=where
    )
    changes = [*notes, *changes]
    if skip_until:
        keep = at >= skip_until
        changes.append(f"left out {int(np.sum(~keep))} points before step {skip_until}")
        at, values = at[keep], values[keep]
    if len(at) == 0:
        raise ValueError(f"{where}: no points are left after step {skip_until}.")
    total = int(at[-1]) + 1 if steps is None else int(steps)
    if schedule is not None:
        dense = np.asarray(schedule(total) if callable(schedule) else schedule, dtype=float)
        changes += _disagreement(dense, rate_steps, logged)
    elif logged is None:
        raise ValueError(
            f"{where}: the log has no learning rates; give schedule=, an array with the rate of "
            "every step or a function of the number of steps."
        )
    else:
        usable = _repair.repair_rates(rate_steps, logged, changes, where=where)
        if usable.sum() < len(at) / 10:
            changes.append(f"only {int(usable.sum())} logged rates for {len(at)} losses")
        dense, more = _schedules.interpolate(
            rate_steps[usable], logged[usable], total, warmup=warmup
        )
        changes += more
    if len(dense) <= at[-1]:
        raise ValueError(
            f"{where}: the schedule has {len(dense)} steps, but a loss was logged at step {at[-1]}."
        )
    # The area is 0 as long as no rate has been above 0, and the laws are infinite there.
    early = np.cumsum(dense)[at] <= 0
    if early.any():
        changes.append(f"left out {int(early.sum())} points before any training (step {at[0]})")
        at, values = at[~early], values[~early]
    return Curve(at, values, dense, name=name, params=params, repairs=tuple(changes))


def _loss_column(columns, wanted, split, path):
    if split not in ("auto", "train", "validation"):
        raise ValueError(f"curves.read: split must be auto, train or validation, got {split!r}.")
    order = {
        "auto": _tables.VALIDATION + _tables.TRAIN,
        "train": _tables.TRAIN,
        "validation": _tables.VALIDATION,
    }[split]
    found = _tables.pick(columns, wanted, order, "loss", path)
    if found is None:
        raise ValueError(
            f"curves.read: {path} has no {split} loss among {sorted(columns)}; name it with loss=."
        )
    return found


def _logged_rates(steps, rates):
    """Rates by increasing step, the last of repeated ones, from every row that has one."""
    if rates is None:
        return None, None
    steps, rates = np.asarray(steps, dtype=float), np.asarray(rates, dtype=float)
    keep = np.isfinite(steps) & (np.isfinite(rates) | np.isnan(rates))
    steps, rates = steps[keep].astype(int), rates[keep]
    known = np.isfinite(rates)
    if not known.any():
        return None, None
    order = np.argsort(steps, kind="stable")
    steps, rates = steps[order], rates[order]
    last = np.append(np.diff(steps) > 0, True)
    return steps[last], rates[last]


def _disagreement(dense, steps, logged):
    if logged is None:
        return []
    inside = (steps < len(dense)) & np.isfinite(logged)
    off = np.abs(dense[steps[inside]] - logged[inside]) > 1e-3 * np.max(dense)
    if not off.any():
        return []
    first = int(steps[inside][np.flatnonzero(off)[0]])
    return [
        f"{int(off.sum())} of {int(inside.sum())} logged rates differ from the given schedule, the "
        f"first at step {first}; the schedule was used"
    ]
