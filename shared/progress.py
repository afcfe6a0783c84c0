"""What a person sees while a run goes on: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

SHOWN = ("loss", "accuracy")


class Progress:
    """Loss, accuracy, steps per second and time left.

    Args:
      first, last: step that the run starts from and step that it ends at.
      show: False writes nothing.
      stream: a bar is drawn where it is a terminal, lines elsewhere.
      every_s: seconds between lines.
    """

    def __init__(
        self,
        first: int,
        last: int,
        *,
        show: bool = True,
        stream: TextIO | None = None,
        every_s: float = 10.0,
    ):
        self._stream = stream or sys.stderr
        self._last = last
        self._every_s = every_s
        self._next_line = 0.0
        self._show = show and first < last
        self._evaluated = ""
        self._bar: Any = None
        if self._show and self._stream.isatty():
            self._bar = tqdm(
                total=last, initial=first, unit="step", file=self._stream, dynamic_ncols=True
            )

    def step(self) -> None:
        """Counts one step."""
        if self._bar is not None:
            self._bar.update(1)

    def report(self, step: int, metrics: Mapping[str, Any], steps_per_s: float) -> None:
        """Shows the newest numbers; `steps_per_s` is without compilation and pauses."""
        if not self._show:
            return
        shown = {name: f"{metrics[name]:.4g}" for name in SHOWN if name in metrics}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            return
        left = (self._last - step) / steps_per_s if steps_per_s > 0 else float("nan")
        numbers = "".join(f"  {name} {value}" for name, value in shown.items())
        now = time.monotonic()
        if now < self._next_line and step < self._last:
            return
        self._next_line = now + self._every_s
        self._evaluated, evaluated = "", self._evaluated
        self._stream.write(
            f"step {step}/{self._last}{numbers}  {steps_per_s:.4g} steps/s  {_clock(left)} left"
            f"{evaluated}\n"
        )
        self._stream.flush()

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes an evaluation: at once beside a bar, with the next line elsewhere."""
        numbers = "".join(f"  {name} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.write(f"step {step}/{self._last}{numbers}", file=self._stream)
        else:
            self._evaluated = f"  (step {step}:{numbers})"

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
