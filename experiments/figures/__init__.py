"""Figures that reproduce a number: `python -m experiments.figures [package.name ...] [--fast]`.

A figure is a module `experiments/figures/<package>/<name>.py` with two functions, and a docstring
whose first line is the claim:

- `compute(fast)` returns a JSON-able dict: the curves, how they were made (`data`, `seeds`), and
  `claims`, a list made with `claim`. `fast` asks for the same figure in seconds.
- `draw(result)` turns that dict, and nothing else, into a matplotlib Figure.

The runner writes `<out>/<package>/<name>.json` and `.png`, and fails when a claim does.
"""

import math
from typing import Any


def claim(
    name: str, value: float, *, low: float = -math.inf, high: float = math.inf
) -> dict[str, Any]:
    """A number that a figure must show, with the bar it must meet.

    Args:
      name: what the number is, in words.
      value: the number that was found; NaN never holds.
      low, high: the closed interval in which it must lie.
    Returns:
      A JSON-able dict with `name`, `value`, `low`, `high` and `holds`.

    >>> claim("slope of the error in the width", -0.52, low=-0.6, high=-0.4)["holds"]
    True
    """
    value = float(value)
    return {"name": name, "value": value, "low": low, "high": high, "holds": low <= value <= high}
