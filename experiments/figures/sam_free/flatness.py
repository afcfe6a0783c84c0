"""SAF lowers the largest Hessian eigenvalue; a uniform target does too, but not SAM's sharpness.

Paired with SGD at equal seeds. `python -m experiments.saf_study` makes the table of all methods and
controls over five seeds; this figure has the rows that tell SAF from a pull to the uniform.
"""

from typing import Any

from matplotlib.figure import Figure

from experiments import saf_study
from experiments.figures import claim
from experiments.studies import saf_table
from shared import data

METHODS = ["sgd", "saf_3", "sam", "uniform"]


def compute(fast: bool) -> dict[str, Any]:
    """Trains the methods and compares them; on the digits where Fashion-MNIST is missing."""
    digits = fast or data.find_fashion_mnist() is None
    setting = saf_table.Setting(trace_samples=2)
    seeds = [0, 1, 2]
    if digits:
        setting = saf_table.Setting(
            dataset="digits",
            width=32,
            learning_rate=0.1,
            num_epochs=12 if fast else 30,
            lanczos_iters=15,
            trace_samples=2,
        )
    if fast:
        seeds = [0, 1]
    result = saf_table.run(METHODS, seeds, setting)
    table = saf_table.compare(result["runs"])
    result["data"] = saf_study.title(result)
    result["claims"] = [
        claim(
            "largest eigenvalue with SAF, ratio, worst seed",
            max(table["saf_3"]["lambda_max"]),
            high=1.0 if digits else 0.6,
        ),
        claim(
            "SAM sharpness with the uniform target, ratio, best seed",
            min(table["uniform"]["sam_sharpness"]),
            low=1.0,
        ),
        claim(
            "largest eigenvalue with the uniform target, ratio, worst seed",
            max(table["uniform"]["lambda_max"]),
            high=1.0,
        ),
    ]
    if not digits:
        result["claims"].append(
            claim("gain of SAF 3 in points, worst seed", min(table["saf_3"]["gain"]), low=1.0)
        )
    return result


def draw(result: dict[str, Any]) -> Figure:
    """Dots for seeds, bars at the means."""
    return saf_study.draw(result)
