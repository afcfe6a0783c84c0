"""The command line: `python -m scaling_laws fit|predict|compare|frontier|schedule|watch`."""

import argparse
import dataclasses
import inspect
import json
import sys
from pathlib import Path

import jax
import numpy as np

from scaling_laws import curves, laws
from scaling_laws._bootstrap import bootstrap
from scaling_laws._compare import compare
from scaling_laws._compute_optimal import compute_optimal
from scaling_laws._data import complete_columns
from scaling_laws._fit import fit
from scaling_laws._intervals import interval
from scaling_laws._schedule_search import FAMILIES, optimize_schedule
from scaling_laws._watch import watch
from scaling_laws.curves._tables import read_columns

LAWS = {
    "chinchilla": laws.Chinchilla,
    "power_law": laws.PowerLaw,
    "encoder_decoder": laws.EncoderDecoder,
    "broken_power_law": laws.BrokenPowerLaw,
    "crossover": laws.Crossover,
    "annealing": laws.LRAnnealing,
    "multi_power": laws.MultiPower,
    "functional": laws.FunctionalScaling,
    "power_relaxation": laws.PowerRelaxation,
}
SHAPES = {
    "cosine": curves.cosine,
    "constant": curves.constant,
    "wsd": curves.wsd,
    "two_stage": curves.two_stage,
}


def main(argv=None) -> int:
    """0 when the command worked, 2 with a message on stderr when it was refused."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        # What cannot be written is refused before the work, not after it.
        for path in (arguments.out, getattr(arguments, "plot", None)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        record = COMMANDS[arguments.command](arguments)
        record["seed"] = arguments.seed
        text = json.dumps(_plain(record), indent=1)
        if arguments.out is None:
            sys.stdout.write(text + "\n")
        else:
            partial = arguments.out.with_name(f".{arguments.out.name}.partial")
            partial.write_text(text + "\n")
            partial.replace(arguments.out)
            _say(f"wrote {arguments.out}")
    except (ValueError, OSError, ImportError) as error:
        _say(f"error: {error}")
        return 2
    return 0


def _say(text):
    """Progress and warnings go to stderr; stdout holds the JSON alone."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _parser():
    parser = argparse.ArgumentParser(prog="python -m scaling_laws", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, help_text, *, held_out=False):
        sub = commands.add_parser(name, help=help_text)
        sub.add_argument("data", nargs="+", help="a table of runs, or one log per curve")
        sub.add_argument("--law", default="annealing", help=f"one of {', '.join(LAWS)}")
        sub.add_argument("--loss", default="huber", help="huber, lsq, lad or student_t")
        sub.add_argument("--delta", type=float, default=1e-3, help="of huber, in log loss")
        sub.add_argument("--drop-largest", type=int, default=0, help="largest losses left out")
        sub.add_argument("--seed", type=int, default=None, help="random starts and bootstraps")
        sub.add_argument("--bootstraps", type=int, default=0, help="resamples for intervals")
        sub.add_argument("--warmup", default=None, help="area, full or peak: what it counts for")
        sub.add_argument(
            "--schedule",
            action="append",
            default=[],
            metavar="SHAPE:KEY=VALUE,...",
            help="schedule of a log, in order, e.g. cosine:peak=3e-4,end=3e-5,"
            "warmup=2160,steps=24000; default: from the logged rates",
        )
        sub.add_argument("--skip-until", type=int, default=0, help="leave out earlier points")
        sub.add_argument(
            "--first-step", type=int, default=0, help="what a log calls its first step"
        )
        sub.add_argument("--variable", default="params", help="of a law in one variable")
        sub.add_argument("--out", type=Path, default=None, help="JSON file; default stdout")
        if held_out:
            sub.add_argument("--held-out", nargs="+", default=[], help="logs that are not fitted")
        return sub

    command("fit", "fit a law").add_argument("--plot", type=Path, help="picture of the fit")
    command("predict", "fit, and predict other runs", held_out=True)
    sub = command("compare", "score laws on held-out runs", held_out=True)
    sub.add_argument("--laws", default="annealing,multi_power,power_relaxation")
    sub = command("frontier", "compute-optimal size, tokens and loss")
    sub.add_argument("--flops", type=float, nargs="+", required=True)
    sub.add_argument("--inference-tokens", type=float, default=0.0)
    sub = command("schedule", "the best schedule under the law")
    sub.add_argument("--steps", type=int, required=True)
    sub.add_argument("--peak", type=float)
    sub.add_argument("--floor", type=float, default=0.0)
    sub.add_argument("--warmup-steps", type=int, default=0)
    sub.add_argument("--max-slope", type=float)
    sub.add_argument("--family", choices=FAMILIES)
    sub = command("watch", "where a run in progress will end; earlier runs are further logs")
    sub.add_argument("--steps", type=int, help="planned length, if the schedule does not say")
    return parser


def _law(name, arguments):
    if name not in LAWS:
        raise ValueError(f"--law {name!r}: one of {', '.join(LAWS)}.")
    options = {}
    if arguments.warmup and name in ("annealing", "multi_power", "functional", "power_relaxation"):
        options["warmup"] = arguments.warmup
    if name in ("power_law", "broken_power_law", "crossover"):
        options["variable"] = arguments.variable
    return LAWS[name](**options)


def _schedule(text):
    """("cosine", {...}) -> (function of the number of steps, its own number or None)."""
    shape, _, rest = text.partition(":")
    if shape not in SHAPES:
        raise ValueError(f"--schedule {text!r}: the shape must be one of {', '.join(SHAPES)}.")
    values = {}
    for item in filter(None, rest.split(",")):
        key, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f"--schedule {text!r}: {item!r} is not KEY=VALUE.")
        try:
            number = float(value)
        except ValueError:
            values[key] = value
            continue
        values[key] = int(number) if key in ("warmup", "steps", "switch", "decay_start") else number
    steps = values.pop("steps", None)
    known = inspect.signature(SHAPES[shape]).parameters
    keys = [key for key in known if key != "steps"]
    missing = [key for key in keys if known[key].default is inspect.Parameter.empty]
    if set(values) - set(keys) or set(missing) - set(values):
        raise ValueError(
            f"--schedule {text!r}: {shape} takes {', '.join(keys)} and steps, and needs "
            f"{', '.join(missing)}; got {', '.join(values) or 'none'}."
        )
    return (lambda total: SHAPES[shape](total, **values)), steps


def _curves(paths, arguments, schedules=()):
    read = []
    for number, path in enumerate(paths):
        _say(f"reading {path} ({number + 1} of {len(paths)})")
        schedule, steps = (None, None)
        if number < len(schedules):
            schedule, steps = _schedule(schedules[number])
        curve = curves.read(
            path,
            schedule=schedule,
            steps=steps,
            skip_until=arguments.skip_until,
            first_step=arguments.first_step,
        )
        for note in curve.repairs:
            _say(f"  {note}")
        read.append(curve)
    return read


def _data(law, arguments):
    if hasattr(law, "response"):
        return _curves(arguments.data, arguments, arguments.schedule)
    if len(arguments.data) != 1:
        raise ValueError(f"{law.name} takes one table, got {len(arguments.data)} files.")
    return complete_columns(read_columns(arguments.data[0]), law.inputs)


def _fitted(arguments):
    law = _law(arguments.law, arguments)
    data = _data(law, arguments)
    key = None if arguments.seed is None else jax.random.key(arguments.seed)
    _say(f"fitting {law.name}")
    result = fit(
        law,
        data,
        loss=arguments.loss,
        delta=arguments.delta,
        key=key,
        drop_largest=arguments.drop_largest,
    )
    for warning in result.diagnostics.warnings:
        _say(f"warning: {warning}")
    return result


def _resampled(result, arguments):
    if not arguments.bootstraps:
        return None
    _say(f"{arguments.bootstraps} bootstraps")
    return bootstrap(result, arguments.bootstraps, key=jax.random.key(arguments.seed or 0))


def _fit(arguments):
    result = _fitted(arguments)
    record = result.to_json()
    record["intervals_95"] = {s: interval(result, s) for s in result.law.symbols}
    samples = _resampled(result, arguments)
    if samples is not None:
        record["bootstrap"] = {
            "samples": arguments.bootstraps,
            "block": samples.block,
            "standard_errors": samples.standard_errors,
            "intervals_95": {s: samples.interval(s) for s in result.law.symbols},
        }
    if isinstance(result.data, list):
        record["repairs"] = {c.name: list(c.repairs) for c in result.data}
    if arguments.plot is not None:
        from scaling_laws import plots

        plots.fit_and_residuals(result)[0].figure.savefig(arguments.plot, dpi=150)
    return record


def _predict(arguments):
    result = _fitted(arguments)
    record = {"fit": result.to_json()}
    if isinstance(result.data, list):
        others = _curves(arguments.held_out, arguments, arguments.schedule[len(arguments.data) :])
        record["predictions"] = {
            c.name: {"steps": c.steps, "predicted": result.predict(c), "measured": c.losses}
            for c in others
        }
    else:
        record["predictions"] = {
            str(path): result.predict(read_columns(path)) for path in arguments.held_out
        }
    return record


def _compare(arguments):
    chosen = [_law(name, arguments) for name in arguments.laws.split(",")]
    data = _data(chosen[0], arguments)
    held_out = None
    if arguments.held_out:
        if isinstance(data, list):
            held_out = _curves(
                arguments.held_out, arguments, arguments.schedule[len(arguments.data) :]
            )
        else:
            held_out = read_columns(arguments.held_out[0])
    return {"laws": compare(chosen, data, held_out, loss=arguments.loss, delta=arguments.delta)}


def _frontier(arguments):
    if arguments.law == "annealing":
        arguments.law = "chinchilla"
    result = _fitted(arguments)
    best = compute_optimal(
        result,
        arguments.flops,
        bootstrap=_resampled(result, arguments),
        inference_tokens=arguments.inference_tokens,
    )
    return {"fit": result.to_json(), "frontier": dataclasses.asdict(best)}


def _best_schedule(arguments):
    result = _fitted(arguments)
    best = optimize_schedule(
        result,
        steps=arguments.steps,
        peak=arguments.peak,
        floor=arguments.floor,
        warmup_steps=arguments.warmup_steps,
        max_slope=arguments.max_slope,
        family=arguments.family,
    )
    return {"fit": result.to_json(), "schedule": dataclasses.asdict(best)}


def _watch(arguments):
    law = _law(arguments.law, arguments)
    read = _curves(arguments.data, arguments, arguments.schedule)
    run, earlier = read[0], read[1:]
    if arguments.steps and len(run.learning_rates) < arguments.steps:
        raise ValueError(
            f"watch: the schedule of {run.name} has {len(run.learning_rates)} of "
            f"{arguments.steps} steps; give its plan with --schedule."
        )
    forecast = watch(run, law, earlier=earlier, loss=arguments.loss, delta=arguments.delta)
    record = {f.name: getattr(forecast, f.name) for f in dataclasses.fields(forecast)}
    record["result"] = None if forecast.result is None else forecast.result.to_json()
    return record


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


COMMANDS = {
    "fit": _fit,
    "predict": _predict,
    "compare": _compare,
    "frontier": _frontier,
    "schedule": _best_schedule,
    "watch": _watch,
}
