"""Rewrites the gallery: `python -m experiments.gallery [--figures runs/figures] [--docs docs]`.

Takes every figure that `python -m experiments.figures` has written, copies its picture beside the
documentation and writes one page with the claim, the numbers and the command of each.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from experiments._files import write_text

HEADER = """# Gallery

Every figure is one command and writes, beside its picture, a JSON with the numbers below. A figure
whose number leaves its bar fails. All: `make figures`; one: the command under its picture.
"""


def entry(record: dict[str, Any]) -> str:
    """One figure as Markdown: claim, picture, numbers with their bars, and how to make it."""
    package, name = record["figure"].split(".")
    lines = [
        f"### {record['title']}",
        "",
        f"![{record['title']}](figures/{package}/{name}.png)",
        "",
    ]
    lines += ["| number | value | must be | |", "|---|---|---|---|"]
    for claim in record["result"]["claims"]:
        low, high = claim["low"], claim["high"]
        bars = [f">= {low:.4g}"] if low is not None else []
        bars += [f"<= {high:.4g}"] if high is not None else []
        verdict = "holds" if claim["holds"] else "**fails**"
        value = "none" if claim["value"] is None else f"{claim['value']:.4g}"
        name_cell = claim["name"].replace("|", "\\|")  # a bare bar would end the cell
        lines.append(f"| {name_cell} | {value} | {' and '.join(bars) or 'reported'} | {verdict} |")
    environment = record["environment"]
    versions = environment["packages"]
    lines += [
        "",
        f"`{record['command']}`: {record['wall_time_s']:.0f} s on {environment['device']}, ",
    ]
    lines[-1] += f"jax {versions['jax']}, commit {environment['commit'] or 'unknown'}."
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where there is no figure to show."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gallery", description=__doc__)
    parser.add_argument("--figures", type=Path, default=Path("runs/figures"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    records = [json.loads(path.read_text()) for path in sorted(arguments.figures.glob("*/*.json"))]
    if not records:
        print(f"no figure in {arguments.figures}; run `make figures` first", file=sys.stderr)
        return 2
    page = [HEADER]
    package = None
    for record in records:
        own, name = record["figure"].split(".")
        if own != package:
            page.append(f"## {own}\n")
            package = own
        page.append(entry(record) + "\n")
        target = arguments.docs / "figures" / own / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arguments.figures / own / f"{name}.png", target)
    write_text(arguments.docs / "gallery.md", "\n".join(page))
    print(f"{len(records)} figures in {arguments.docs / 'gallery.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
