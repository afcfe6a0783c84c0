"""Trains one study by several methods from several seeds: a table and a picture of how they differ.

python -m experiments.compare --workdir=runs/saf_digits [--config=FILE] [--methods=sgd,saf,sam]
    [--seeds=3] [--config.key=value ...]

Every run lives in `<workdir>/<method>-<seed>` and resumes if it was interrupted. The table goes to
the terminal and to `<workdir>/comparison.json`, the picture to `<workdir>/comparison.png`.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments._files import write_text
from experiments.train import Refused, build_study, parse
from sam_free import sharpness
from shared import plotting
from shared.environment import describe_environment
from shared.errors import RunError
from shared.launch import use_compilation_cache
from shared.train import Study, TrainState, train

DEFAULT = Path(__file__).parent / "configs" / "saf_digits.py"
SHARPNESS_SIZE = 1024  # training examples, with the labels that the run was given
MEASURES = {  # key of a run's record -> (title, scale, unit)
    "accuracy": ("test accuracy", 100.0, "%"),
    "step_ms": ("time per step", 1.0, "ms"),
    "lambda_max": ("largest Hessian eigenvalue", 1.0, ""),
    "sam_sharpness": ("SAM sharpness, rho = 0.05", 1.0, ""),
}


def measure(study: Study, state: TrainState, seed: int) -> dict[str, float]:
    """Largest Hessian eigenvalue of the training loss with its error bar, and SAM sharpness."""
    count = min(SHARPNESS_SIZE, study.train_data.num_examples)
    batch = study.train_data.batch(np.arange(count))
    # In chunks of an eighth of a thousand, so that memory stays small for any network.
    batches = [
        {name: rows[start : start + 128] for name, rows in batch.items()}
        for start in range(0, count, 128)
    ]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits, _ = study.model.apply(
            params, state.model_state, batch["image"], train=False, key=None
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    top = sharpness.top_eigenvalues(
        loss_fn, state.params, batches, k=1, which="LA", num_iters=30, key=jax.random.key(seed)
    )
    sam = sharpness.sam_sharpness(loss_fn, state.params, batches, rho=0.05)
    return {
        "lambda_max": float(np.ravel(top.value)[0]),
        "lambda_max_error": float(np.ravel(top.error)[0]),
        "sam_sharpness": float(sam.value),
    }


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on with, one run, and returns what is compared."""
    study = build_study(config)
    result = train(study, config, workdir, show=True)
    timings = [json.loads(line) for line in (workdir / "timings.jsonl").read_text().splitlines()]
    rates = [row["steps_per_s"] for row in timings if row["kind"] == "train"]
    state = jax.device_get(result.state)
    return {
        "accuracy": result.metrics["test/accuracy"],
        "loss": result.metrics["test/loss"],
        "step_ms": 1e3 / float(np.median(rates)),
        **measure(study, state, config.seed),
    }


def compare(config: Any, workdir: Path, methods: list[str], seeds: int) -> dict[str, Any]:
    """Runs every method from every seed: a JSON-able record of all that the picture shows.

    Seeds are the outer loop, so that a machine that gets slower slows every method alike.
    """
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    total = len(methods) * seeds
    first = config.seed
    for seed in range(first, first + seeds):
        for method in methods:
            number = sum(map(len, runs.values())) + 1
            print(f"[{number}/{total}] {method}, seed {seed}", file=sys.stderr, flush=True)
            config.seed, config.method = seed, method
            runs[method].append({"seed": seed} | run(config, workdir / f"{method}-{seed}"))
    config.seed = first
    return {
        "study": config.study,
        "dataset": config.get("dataset", ""),
        "seeds": list(range(first, first + seeds)),
        "num_epochs": config.num_epochs,
        "environment": describe_environment(),
        "runs": runs,
    }


def table(record: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, and the time beside the first method's."""
    methods = list(record["runs"])
    header = f"{'method':<8}" + "".join(f"{title:>30}" for title, _, _ in MEASURES.values())
    lines = [header, "-" * len(header)]
    base = _values(record, methods[0], "step_ms")
    for method in methods:
        cells = []
        for key, (_, scale, unit) in MEASURES.items():
            values = scale * _values(record, method, key)
            cell = f"{values.mean():.4g} ± {_spread(values):.2g}{' ' + unit if unit else ''}"
            if key == "step_ms":
                cell += f" (x{np.median(_values(record, method, key) / base):.2f})"
            cells.append(f"{cell:>30}")
        lines.append(f"{method:<8}" + "".join(cells))
    device = record["environment"]["device"]
    count = record["environment"]["num_devices"]
    lines.append(
        f"{record['dataset']}, {record['num_epochs']} epochs, mean ± standard deviation over seeds "
        f"{record['seeds']}, {count} x {device}; x: median ratio to {methods[0]} at equal seed"
    )
    return "\n".join(lines)


def draw(record: dict[str, Any]) -> Any:
    """One panel a measure: a dot for each seed and a bar at the mean."""
    methods = list(record["runs"])
    figure, axes = plotting.new_figure(1, len(MEASURES), width=3.0, height=3.0)
    for axis, (key, (title, scale, unit)) in zip(axes[0], MEASURES.items()):
        for place, method in enumerate(methods):
            values = scale * _values(record, method, key)
            offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
            color = plotting.COLORS[place % len(plotting.COLORS)]
            axis.plot(place + offsets, values, "o", color=color, alpha=0.6, markersize=5)
            axis.hlines(values.mean(), place - 0.28, place + 0.28, color=color, linewidth=2.5)
        axis.set_xticks(range(len(methods)), [method.upper() for method in methods])
        axis.set_xlim(-0.6, len(methods) - 0.4)
        axis.set_title(title + (f" ({unit})" if unit else ""))
        axis.margins(y=0.25)
        if key != "accuracy":
            axis.set_ylim(bottom=0)
    seeds = len(record["seeds"])
    device = record["environment"]["device"]
    figure.suptitle(
        f"{record['dataset']}, {record['num_epochs']} epochs: "
        f"bars are means of {seeds} seed{'s' if seeds > 1 else ''} (dots), device {device}",
        fontsize=10,
    )
    return figure


def _values(record: dict[str, Any], method: str, key: str) -> np.ndarray:
    return np.array([run[key] for run in record["runs"][method]], np.float64)


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or the exit code that `experiments.train` has for the same error."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", default=str(DEFAULT), help="a study with a key `method`")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--methods", default="sgd,saf,sam", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from config.seed on")
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    try:
        options = parse(
            [f"--config={arguments.config}", f"--workdir={arguments.workdir}", *overrides]
        )
        if options is None:  # --help
            return 0
        use_compilation_cache(None)
        record = compare(options.config, arguments.workdir, methods, arguments.seeds)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    record["command"] = "python -m experiments.compare " + shlex.join(
        argv if argv is not None else sys.argv[1:]
    )
    file = arguments.workdir / "comparison.json"
    write_text(file, json.dumps(record, indent=1) + "\n")
    with plotting.theory_style():
        picture = plotting.save(draw(record), arguments.workdir / "comparison.png")
    print(table(record))
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
