"""From what a user has to what the engine takes, with refusals that name the row."""

import dataclasses

import numpy as np

from scaling_laws.curves._curve import Curve
from scaling_laws.laws import _drops
from scaling_laws.laws._base import Prepared


def prepare_table(law, data) -> Prepared:
    """A dict of arrays for a law of the final loss."""
    caller = f"fit({law.name})"
    if not hasattr(data, "keys"):
        raise ValueError(
            f"{caller}: data must be a dict of arrays with {(*law.inputs, 'loss')}, "
            f"got {type(data).__name__}."
        )
    columns = complete_columns(data, law.inputs)
    missing = [name for name in (*law.inputs, "loss") if name not in columns]
    if missing:
        raise ValueError(
            f"{caller}: data lack {missing}; they have {sorted(data)}. "
            "Tokens follow from params and flops as flops / (6 params)."
        )
    losses = columns["loss"]
    for name in (*law.inputs, "loss"):
        column = columns[name]
        if column.shape != losses.shape or column.ndim != 1:
            raise ValueError(
                f"{caller}: {name} has shape {column.shape}, loss {losses.shape}; "
                "all columns need one value per run."
            )
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(
                f"{caller}: {name}[{bad[0]}] is {column[bad[0]]}; it must be a positive number. "
                f"{len(bad)} such rows; leave them out."
            )
    scales = {name: float(np.exp(np.mean(np.log(columns[name])))) for name in law.inputs}
    scales["loss"] = float(np.exp(np.mean(np.log(losses))))
    # Sorted rows make the fit of shuffled data the same to the last bit of the sums.
    order = np.lexsort([columns[name] for name in law.inputs] + [losses])
    points = len(losses)
    return Prepared(
        inputs={name: columns[name][order] / scales[name] for name in law.inputs},
        log_losses=np.log(losses[order] / scales["loss"]),
        scales=scales,
        groups=np.zeros(points, int),
        weights=np.ones(points),
        order=order,
    )


def complete_columns(data, inputs):
    """Float columns, with tokens or flops derived from the other two where they are asked for."""
    columns = {name: np.asarray(values, dtype=float) for name, values in data.items()}
    if "tokens" in inputs and "tokens" not in columns and {"params", "flops"} <= set(columns):
        columns["tokens"] = columns["flops"] / (6 * columns["params"])
    if "flops" in inputs and "flops" not in columns and {"params", "tokens"} <= set(columns):
        columns["flops"] = 6 * columns["params"] * columns["tokens"]
    return columns


def as_curves(data, caller):
    """A list of checked curves: anything with steps, losses and learning_rates will do."""
    data = [data] if hasattr(data, "learning_rates") else data
    if hasattr(data, "keys") or not hasattr(data, "__len__") or len(data) == 0:
        raise ValueError(
            f"{caller}: data must be a list of curves (steps, losses, learning_rates of every "
            f"step), got {type(data).__name__}; read them with scaling_laws.curves.read."
        )
    for number, curve in enumerate(data):
        check_curve(curve, f"{caller}: curve {number} ({getattr(curve, 'name', 'unnamed')})")
    return list(data)


def check_curve(curve, where, *, losses=True):
    """Refuses what no fit can use, naming the row."""
    steps, rates = np.asarray(curve.steps), np.asarray(curve.learning_rates, dtype=float)
    if rates.ndim != 1 or not len(rates) or not np.all(np.isfinite(rates)) or np.any(rates < 0):
        raise ValueError(f"{where}: learning_rates must be finite, >= 0, one per step.")
    if not np.max(rates) > 0:
        raise ValueError(f"{where}: every learning rate is 0; rebuild the schedule.")
    if steps.ndim != 1 or not len(steps) or np.any(steps != np.floor(steps)):
        raise ValueError(f"{where}: steps must be whole numbers, one per point.")
    disorder = np.flatnonzero(np.diff(steps) <= 0)
    if len(disorder):
        raise ValueError(
            f"{where}: step {steps[disorder[0] + 1]} follows {steps[disorder[0]]} at row "
            f"{disorder[0] + 1}; sort and merge with scaling_laws.curves.repair."
        )
    if steps[0] < 0 or steps[-1] >= len(rates):
        raise ValueError(
            f"{where}: steps run from {steps[0]} to {steps[-1]}, the schedule has {len(rates)} "
            "steps (0-based); every logged step needs its learning rate."
        )
    if losses:
        values = np.asarray(curve.losses, dtype=float)
        if values.shape != steps.shape:
            raise ValueError(f"{where}: {len(steps)} steps but losses of shape {values.shape}.")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"{where}: the loss at row {bad[0]} (step {steps[bad[0]]}) is {values[bad[0]]}; "
                "it must be a positive number. Clean the log with scaling_laws.curves.repair."
            )


def schedules_of(law, curve):
    """(rates whose drops count, rates whose sum is S1) under the law's warm-up convention."""
    rates = np.asarray(curve.learning_rates, dtype=float)
    flat = rates.copy()
    peak = int(np.argmax(rates))
    flat[:peak] = rates[peak]
    return {"area": (flat, rates), "full": (rates, rates), "peak": (flat, flat)}[law.warmup]


def curve_inputs(law, curves, **options):
    """Natural inputs of a schedule law at every point of the curves, and the curve of each."""
    areas, pairs, sizes, groups = [], [], [], []
    first = 0
    for number, curve in enumerate(curves):
        steps = np.asarray(curve.steps, dtype=int)
        drop_rates, area_rates = schedules_of(law, curve)
        pairs.append(_drops.pairs_of(drop_rates, area_rates, steps, first_point=first, **options))
        areas.append(np.cumsum(area_rates)[steps])
        groups.append(np.full(len(steps), number))
        if "params" in law.inputs:
            if getattr(curve, "params", None) is None:
                raise ValueError(
                    f"fit({law.name}): curve {number} has no params (model size), which the law "
                    "takes."
                )
            sizes.append(np.full(len(steps), float(curve.params)))
        first += len(steps)
    drop = _drops.Pairs(*(np.concatenate(parts) for parts in zip(*pairs)))
    inputs = {"area": np.concatenate(areas), "drop": drop}
    if sizes:
        inputs["params"] = np.concatenate(sizes)
    return inputs, np.concatenate(groups)


def scale_inputs(inputs, scales):
    """The same inputs in the units inside."""
    if "drop" not in inputs:
        return {name: values / scales[name] for name, values in inputs.items()}
    drop = inputs["drop"]
    scaled = {"area": inputs["area"] / scales["area"]}
    if "params" in inputs:
        scaled["params"] = inputs["params"] / scales["params"]
    scaled["drop"] = drop._replace(
        weight=drop.weight / scales["rate"],
        area=drop.area / scales["area"],
        rate=drop.rate / scales["rate"],
        start_area=drop.start_area / scales["area"],
    )
    return scaled


def without_scales(prepared, dimensions):
    """The same data with some dimensions in the user's own unit."""
    if not dimensions:
        return prepared
    undo = {k: 1 / v if k in dimensions else 1.0 for k, v in prepared.scales.items()}
    return dataclasses.replace(
        prepared,
        inputs=scale_inputs(prepared.inputs, undo),
        scales={k: 1.0 if k in dimensions else v for k, v in prepared.scales.items()},
    )


def prepare_curves(law, data, **options) -> Prepared:
    """A list of curves for a schedule law; `options` are those of `_drops.nodes_of`."""
    curves = as_curves(data, f"fit({law.name})")
    # The sum over curves does not depend on their order; sorting makes that true to the last bit.
    ranking = sorted(
        range(len(curves)),
        key=lambda i: (len(curves[i].steps), float(np.sum(curves[i].losses)), i),
    )
    lengths = [len(curve.steps) for curve in curves]
    rows = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    order = np.concatenate([rows[i] for i in ranking])
    curves = [curves[i] for i in ranking]
    inputs, groups = curve_inputs(law, curves, **options)
    losses = np.concatenate([np.asarray(curve.losses, dtype=float) for curve in curves])
    if not np.all(inputs["area"] > 0):
        row = int(np.flatnonzero(~(inputs["area"] > 0))[0])
        raise ValueError(
            f"fit({law.name}): the area is 0 at point {row} (before the warm-up has begun), where "
            "the laws are infinite; leave out the points of step 0."
        )
    scales = {
        "loss": float(np.exp(np.mean(np.log(losses)))),
        "area": float(np.exp(np.mean(np.log(inputs["area"])))),
        "rate": float(max(np.max(curve.learning_rates) for curve in curves)),
    }
    if "params" in inputs:
        scales["params"] = float(np.exp(np.mean(np.log(inputs["params"]))))
    return Prepared(
        inputs=scale_inputs(inputs, scales),
        log_losses=np.log(losses / scales["loss"]),
        scales=scales,
        groups=np.asarray(ranking)[groups],
        weights=np.ones(len(losses)),
        order=order,
    )


def thin_curves(law, data, prepared, points, **options):
    """The prepared curves with about `points` evenly chosen points each, in the same scales."""
    curves = as_curves(data, f"fit({law.name})")
    everything = np.ones(len(prepared.weights), bool)
    rows = _evenly(prepared.groups, everything, points)
    # Points of weight 0 keep their place, so that other weights do not compile again, unless too
    # few others are left.
    if np.sum(prepared.weights[rows] > 0) < 4 * len(law.parameters):
        rows = _evenly(prepared.groups, prepared.weights > 0, points)
    kept = []
    for group in dict.fromkeys(prepared.groups[rows].tolist()):
        chosen = (rows - np.flatnonzero(prepared.groups == group)[0])[
            prepared.groups[rows] == group
        ]
        curve = curves[group]
        steps, losses = np.asarray(curve.steps)[chosen], np.asarray(curve.losses)[chosen]
        size = getattr(curve, "params", None)
        kept.append(Curve(steps, losses, curve.learning_rates, params=size))
    inputs, _ = curve_inputs(law, kept, **options)
    return dataclasses.replace(
        prepared,
        inputs=scale_inputs(inputs, prepared.scales),
        log_losses=prepared.log_losses[rows],
        groups=prepared.groups[rows],
        weights=prepared.weights[rows],
        order=prepared.order[rows],
    )


def _evenly(groups, wanted, points):
    """Rows of about `points` wanted points of each group, its last one always among them."""
    rows = []
    for group in dict.fromkeys(groups.tolist()):
        own = np.flatnonzero((groups == group) & wanted)
        rows.append(own[:: -max(len(own) // points, 1)][::-1])
    return np.concatenate(rows)
