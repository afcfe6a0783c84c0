"""From training runs to a law in one command: trains under several schedules, fits, predicts.

python -m experiments.text_law --workdir=runs/text_law [--config=FILE[:smoke]] [--config.key=value]

Every run lives in `<workdir>/<schedule>` and resumes if it was interrupted. The laws are fitted to
FITTED and scored on the other schedules, on steps that they do not share; the table goes to
`<workdir>/law.json` and the picture of the fit to `<workdir>/law.png`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import scaling_laws
from experiments import _runs
from experiments._files import write_text
from experiments.studies import text_schedules
from experiments.train import Refused, build_study, parse
from scaling_laws import curves, laws, plots
from shared import plotting
from shared.train import train

DEFAULT = Path(__file__).parent / "configs" / "scaling_text.py"
FITTED = ("cosine", "constant", "two_stage")
WINDOW = 5  # logged means per point; training loss is noisier than validation loss


def curve_of(folder: Path, rates: np.ndarray, skip: int) -> curves.Curve:
    """The training loss of a run, averaged over WINDOW lines of its record.

    A line at step s holds the mean over the updates before it, so the point stands at their middle.
    """
    steps, losses = _runs.load(folder).curve("loss")
    gap = int(steps[0])
    count = len(steps) // WINDOW
    middle = steps[: count * WINDOW].reshape(count, WINDOW).mean(axis=1) - gap / 2
    values = losses[: count * WINDOW].reshape(count, WINDOW).mean(axis=1)
    return curves.repair(
        np.floor(middle), values, schedule=rates, skip_until=skip, name=folder.name
    )


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """Trains under every schedule and scores the laws: a JSON-able record."""
    made = {}
    for number, schedule in enumerate(text_schedules.SCHEDULES, 1):
        print(f"[{number}/{len(text_schedules.SCHEDULES)}] {schedule}", file=sys.stderr, flush=True)
        config.schedule = schedule
        train(build_study(config), config, workdir / schedule, show=True)
        rates = text_schedules.rates_of(config)
        made[schedule] = curve_of(workdir / schedule, rates, 2 * config.warmup_steps)
    fitted = [made[name] for name in FITTED]
    held_out = [curve for name, curve in made.items() if name not in FITTED]
    rows = scaling_laws.compare([laws.LRAnnealing(), laws.PowerRelaxation()], fitted, held_out)
    result = scaling_laws.fit(laws.LRAnnealing(), fitted)
    with plotting.theory_style():
        figure, axes = plotting.new_figure(1, 2)
        plots.fit_and_residuals(result, axes[0])
        plotting.save(figure, workdir / "law.png")
    return {"fitted": list(FITTED), "laws": rows, "fit": result.to_json()}


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 when the input cannot work."""
    parser = argparse.ArgumentParser(prog="python -m experiments.text_law", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", default=str(DEFAULT))
    arguments, rest = parser.parse_known_args(argv)
    try:
        options = parse([f"--config={arguments.config}", f"--workdir={arguments.workdir}", *rest])
        assert options is not None
        record = run(options.config, arguments.workdir)
    except (Refused, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = arguments.workdir / "law.json"
    write_text(path, json.dumps(record, indent=1, default=str) + "\n")
    for row in record["laws"]:
        print(
            f"{row['law']}: mean error {100 * row['held_out']['PredE']:.2f} %, worst "
            f"{100 * row['held_out']['WorstE']:.2f} % on schedules that were not fitted"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
