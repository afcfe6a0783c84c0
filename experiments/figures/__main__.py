"""Computes and draws figures; see the package docstring for what a figure is."""

import argparse
import contextlib
import importlib
import json
import math
import os
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

import experiments.figures as figures
from experiments._files import write_text
from shared import plotting
from shared.environment import describe_environment


def names() -> list[str]:
    """Every figure as `package.name`, in alphabetical order."""
    found = []
    for package in pkgutil.iter_modules(figures.__path__):
        if package.ispkg:
            folder = str(Path(figures.__path__[0]) / package.name)
            found += [
                f"{package.name}.{module.name}"
                for module in pkgutil.iter_modules([folder])
                if not module.name.startswith("_")
            ]
    return sorted(found)


def write_json(path: Path, value: Any) -> None:
    """Writes atomically; infinities become null, which JSON has and they have not."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def make(name: str, out: Path, *, fast: bool, redraw: bool = False) -> list[dict[str, Any]]:
    """Computes one figure, writes its JSON and PNG, and returns its claims."""
    module = importlib.import_module(f"experiments.figures.{name}")
    stem = out / name.replace(".", "/")
    stem.parent.mkdir(parents=True, exist_ok=True)
    record_path = stem.with_suffix(".json")
    if redraw:
        record = json.loads(record_path.read_text())
    else:
        start = time.perf_counter()
        result = module.compute(fast)
        record = {
            "figure": name,
            "title": (module.__doc__ or name).splitlines()[0],
            "command": f"python -m experiments.figures {name}" + (" --fast" if fast else ""),
            "environment": describe_environment(),
            "wall_time_s": round(time.perf_counter() - start, 1),
            "result": result,
        }
        write_json(record_path, record)
    with plotting.theory_style():
        plotting.save(module.draw(record["result"]), stem.with_suffix(".png"))
    return record["result"]["claims"]


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when every claim holds, 1 when one does not, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures", description=__doc__)
    parser.add_argument("names", nargs="*", help="package.name or package; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"))
    parser.add_argument("--fast", action="store_true", help="the same figures in seconds")
    parser.add_argument("--redraw", action="store_true", help="draw again from the JSON")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    arguments = parser.parse_args(argv)
    known = names()
    if arguments.list:
        print("\n".join(known))
        return 0
    wanted = arguments.names or known
    chosen = [name for name in known if name in wanted or name.split(".")[0] in wanted]
    packages = {name.split(".")[0] for name in known}
    if unknown := [name for name in wanted if name not in known and name not in packages]:
        print(f"unknown figure {unknown[0]!r}; one of: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = 0
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", flush=True)
        for entry in make(name, arguments.out, fast=arguments.fast, redraw=arguments.redraw):
            failed += not entry["holds"]
            verdict = "holds" if entry["holds"] else "FAILS"
            print(f"    {verdict}  {entry['name']}: {entry['value']:.6g}{_bar(entry)}", flush=True)
        print(f"    {arguments.out / name.replace('.', '/')}.png", flush=True)
    return int(failed > 0)


def _bar(entry: dict[str, Any]) -> str:
    low, high = entry["low"], entry["high"]
    parts = []
    if low is not None and math.isfinite(low):
        parts.append(f">= {low:.6g}")
    if high is not None and math.isfinite(high):
        parts.append(f"<= {high:.6g}")
    return f"  (must be {' and '.join(parts)})" if parts else ""


if __name__ == "__main__":
    # A closed pipe (`| head`) ends the listing, not with a traceback.
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
    os._exit(1)
