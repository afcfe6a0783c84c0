"""The study of SAF: `python -m experiments.saf_study [--out DIR] [--seeds 5] [--fast]`.

Trains SGD, SAF, MESA, SAM and the controls on 10,000 images of Fashion-MNIST with a fifth of the
labels replaced (on the digits where Fashion-MNIST is not installed), from several seeds; then four
of them, from three seeds, for 40 epochs, where SGD fits the wrong labels. Prints both tables,
paired with SGD at equal seeds, and writes `table.json`, `table.png` and the same for
`interpolation`.

About 5 minutes on 2 cores; `--fast` is a run of seconds on the digits that shows nothing.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments._files import write_text
from experiments.studies import saf_table
from shared import data, plotting
from shared.environment import describe_environment

LONG = ["sgd", "saf", "mesa", "sam"]
PANELS = {
    "gain": "gain in test accuracy (points)",
    "lambda_max": "largest Hessian eigenvalue (ratio)",
    "sam_sharpness": "SAM sharpness, rho 0.05 (ratio)",
}


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when both tables are written."""
    parser = argparse.ArgumentParser(prog="python -m experiments.saf_study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/saf_study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    main_setting, long_setting = settings(fast=arguments.fast)
    seeds = list(range(2 if arguments.fast else arguments.seeds))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, methods, own_seeds, setting in (
        ("table", list(saf_table.METHODS), seeds, main_setting),
        ("interpolation", LONG, seeds[:3], long_setting),
    ):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = saf_table.run(methods, own_seeds, setting, say=_say)
        result["environment"] = describe_environment()
        result["wall_time_s"] = time.perf_counter() - start
        result["cpu_time_s"] = time.process_time() - cpu_start
        write_text(arguments.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
        table = saf_table.compare(result["runs"])
        print(f"\n{title(result)}\n{saf_table.format_table(table)}\n", flush=True)
        with plotting.theory_style():
            plotting.save(draw(result), arguments.out / f"{name}.png")
    print(f"written to {arguments.out}")
    return 0


def settings(*, fast: bool) -> tuple[saf_table.Setting, saf_table.Setting]:
    """(the setting of the table, the long one of the counter-example)."""
    if fast:
        small = {"dataset": "digits", "width": 32, "start_epoch": 1, "lanczos_iters": 10}
        return (
            saf_table.Setting(**small, num_epochs=6, trace_samples=4),
            saf_table.Setting(**small, num_epochs=12, trace_samples=4),
        )
    if data.find_fashion_mnist() is None:
        _say("Fashion-MNIST is not installed (Debian: dataset-fashion-mnist); using the digits.")
        small = {"dataset": "digits", "width": 128, "learning_rate": 0.1}
        return (
            saf_table.Setting(**small, num_epochs=30),
            saf_table.Setting(**small, num_epochs=120),
        )
    return saf_table.Setting(), saf_table.Setting(num_epochs=40)


def title(result: Mapping[str, Any]) -> str:
    """What was run, in a line."""
    setting = result["setting"]
    return (
        f"{setting['dataset']}, {100 * setting['wrong_labels']:.0f} % wrong labels, "
        f"{setting['num_epochs']} epochs, {len(result['seeds'])} seeds"
    )


def draw(result: Mapping[str, Any]) -> Figure:
    """One row per method, one dot per seed, a bar at the mean."""
    table = saf_table.compare(result["runs"])
    rows = [row for name, row in table.items() if name != "sgd"]
    figure, axes = plotting.new_figure(1, len(PANELS), width=3.9, height=1.0 + 0.32 * len(rows))
    for axis, (measure, label) in zip(axes[0], PANELS.items()):
        for place, row in enumerate(rows):
            values = row[measure]
            color = plotting.COLORS[0 if np.mean(values) > 0 else 1]
            if measure != "gain":
                color = plotting.COLORS[0 if np.mean(values) < 1 else 1]
            axis.plot(values, [place] * len(values), "o", color=color, alpha=0.45, markersize=5)
            axis.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=color)
        axis.axvline(0 if measure == "gain" else 1, color="#000000", linewidth=0.8)
        axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(label)
        if axis is not axes[0, 0]:
            axis.tick_params(labelleft=False)
    figure.suptitle(f"Beside SGD at equal seeds: {title(result)} (dots: seeds, bars: means)")
    return figure


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
