"""Compares runs: `python -m experiments.report RUN... [--out DIR] [--metrics a,b]`.

RUN is the folder of a run, or one that holds runs. Runs that differ in their seed alone are one
line: mean and standard deviation over seeds. Prints a table, and writes `report.png` and
`report.html`, one page that needs nothing else.
"""

import argparse
import html
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments._files import write_text
from experiments._runs import Group, differing, find, gather, load, spread
from shared import plotting

MAX_PANELS = 6
NOT_FINITE = "not finite"


def choose_metrics(groups: Sequence[Group], wanted: Sequence[str] = ()) -> list[str]:
    """What is shown: the metrics asked for, or all evaluations and the training loss.

    Raises:
      ValueError: no run holds a metric that was asked for.
    """
    known = list(dict.fromkeys(n for group in groups for run in group.runs for n in run.names()))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no run holds the metric {unknown[0]!r}; there are: {', '.join(known)}.")
    evaluations = [name for name in known if "/" in name]
    return list(wanted) or (evaluations + [n for n in ("loss",) if n in known])[:MAX_PANELS]


def cell(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds, as text."""
    if len(values) == 0:
        return "-"
    if not np.isfinite(values).all():
        return NOT_FINITE
    mean = f"{values.mean():.4g}"
    return f"{mean} ± {float(spread(values)):.2g}" if len(values) > 1 else mean


def make_table(groups: Sequence[Group], names: Sequence[str]) -> list[list[str]]:
    """Rows of text, the first of them the header."""
    table = [["run", "seeds", "steps", *names, "ms/step"]]
    for group in groups:
        steps = sorted({run.step for run in group.runs})
        times = np.array([run.step_ms for run in group.runs])
        table.append(
            [
                group.label,
                str(len(group.runs)),
                f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}",
                *(cell(group.values(name)) for name in names),
                cell(times[~np.isnan(times)]),
            ]
        )
    return table


def as_text(table: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def draw(groups: Sequence[Group], names: Sequence[str]) -> Figure:
    """A panel for each metric: the mean over seeds, and one standard deviation as a band."""
    names = names[:MAX_PANELS]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure, axes = plotting.new_figure(rows, columns, width=4.0, height=3.0)
    for axis, name in zip(axes.flat, names):
        for place, group in enumerate(groups):
            steps, mean, band = group.band(name)
            color = plotting.COLORS[place % len(plotting.COLORS)]
            style = ("-", "--", ":", "-.")[place // len(plotting.COLORS) % 4]
            label = group.label if axis is axes.flat[0] else None
            marker = "o" if len(steps) < 2 else None  # a line of one point is invisible
            axis.plot(steps, mean, style, color=color, label=label, marker=marker)
            axis.fill_between(steps, mean - band, mean + band, color=color, alpha=0.2, linewidth=0)
        axis.set_title(name)
        axis.set_xlabel("step")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.legend(loc="outside lower center", ncols=max(1, min(len(groups), 3)))
    figure.suptitle(caption(groups), fontsize=9)
    return figure


def caption(groups: Sequence[Group]) -> str:
    """What the lines and bands are, in one sentence."""
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "One seed for each line"
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean over {number} seeds; band: one standard deviation"


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto;
  max-width: 76rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: 0 0 1rem; color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; border-bottom: 2px solid #999; }
td.bad { color: #b00020; font-weight: 600; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; }
dl { columns: 16rem; column-gap: 2.5rem; margin: 0; }
dl div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid;
  border-bottom: 1px solid #e3e3e3; padding: .2rem 0; }
dt { color: #555; } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
"""


def html_table(table: Sequence[Sequence[str]]) -> str:
    """A table as an HTML element; what is not finite stands out."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table[0])
    rows = []
    for row in table[1:]:
        cells = (
            f'<td class="bad">{html.escape(t)}</td>'
            if t == NOT_FINITE
            else f"<td>{html.escape(t)}</td>"
            for t in row
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def as_page(groups: Sequence[Group], names: Sequence[str], figure: Figure) -> str:
    """The whole report as one HTML page without anything outside it."""
    runs = [run for group in groups for run in group.runs]
    first = runs[0].config
    keys = differing([group.runs[0] for group in groups])
    common = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for key, value in first.items()
        if key not in keys and key != "seed"
    )
    folders = [["folder", "seed", "step", "commit", "device"]] + [
        [
            str(run.path),
            str(run.config.get("seed", "-")),
            str(run.step),
            str(run.environment.get("commit", "-")),
            f"{run.environment.get('num_devices', '-')} x {run.environment.get('device', '-')}",
        ]
        for run in runs
    ]
    study = html.escape(str(first.get("study") or "runs"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report: {study}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Report: {study}</h1>
<p>{len(runs)} run{"s" if len(runs) > 1 else ""} in {len(groups)}
group{"s" if len(groups) > 1 else ""}. Last values, mean ± standard deviation over seeds; ms/step
is the median of a run, compilation and evaluation left out.</p>
{html_table(make_table(groups, names))}
<h2>Curves</h2>
<figure>{as_svg(figure)}</figure>
<h2>Runs</h2>
{html_table(folders)}
<h2>Settings that all runs share</h2>
<dl>{common}</dl>
</body>
</html>
"""


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 when the arguments name no runs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or of runs")
    parser.add_argument("--out", type=Path, default=Path("runs/report"))
    parser.add_argument("--metrics", default="", help="names to show, separated by commas")
    arguments = parser.parse_args(argv)
    try:
        groups = gather([load(path) for path in find(arguments.runs)])
        wanted = [name for name in arguments.metrics.split(",") if name]
        names = choose_metrics(groups, wanted)
        if not names:
            raise ValueError("the runs hold no evaluation and no loss yet.")
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(as_text(make_table(groups, names)))
    with plotting.theory_style():
        figure = draw(groups, names)
        page = as_page(groups, names, figure)
        picture = plotting.save(figure, arguments.out / "report.png")
    write_text(arguments.out / "report.html", page)
    print(f"\n{picture}\n{arguments.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
