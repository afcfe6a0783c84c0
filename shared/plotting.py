"""The one look of every picture, and the one way to save it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cycler
import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by readers with any colour vision, and in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")

STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "optgen",
    "axes.prop_cycle": cycler.cycler(color=COLORS),
}


@contextlib.contextmanager
def theory_style() -> Iterator[None]:
    """Applies the look inside a `with` block and restores what was set before."""
    with mpl.rc_context(STYLE):
        yield


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.2):
    """A figure outside pyplot's global list, so that a long session does not gather open figures.

    Args:
      rows, columns: the grid of axes.
      width, height: inches per axes.
    Returns:
      (figure, axes), axes an object array [rows, columns].
    """
    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG or SVG whose bytes depend on the picture alone (no date), atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(partial, metadata=metadata)
    partial.replace(path)
    plt.close(figure)
    return path
