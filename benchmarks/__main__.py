"""Runs benchmarks: `python -m benchmarks [name ...] [--fast] [--out FILE]`.

A benchmark is a module of this folder with `run(fast) -> list[dict]`; a row holds at least `name`,
`ours` and `peer` (seconds or bytes, of this run), `ratio`, and `bar`, the ratio it must meet, with
`holds`. Peers live in environments of their own (`benchmarks.peers`).
"""

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import benchmarks
from shared.environment import describe_environment

TOOLS = {"__main__", "interleave", "peers"}


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when every bar is met, 1 when one is not, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--fast", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks.json"))
    arguments = parser.parse_args(argv)
    known = sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in TOOLS and not module.name.startswith("_")
    )
    names = arguments.names or known
    if unknown := [name for name in names if name not in known]:
        print(f"unknown benchmark {unknown[0]!r}; one of: {', '.join(known)}", file=sys.stderr)
        return 2
    results = {}
    failed = 0
    for name in names:
        print(name, flush=True)
        rows = importlib.import_module(f"benchmarks.{name}").run(arguments.fast)
        results[name] = rows
        for row in rows:
            failed += not row["holds"]
            verdict = "meets" if row["holds"] else "MISSES"
            print(
                f"    {row['name']}: ratio {row['ratio']:.3g}, {verdict} {row['bar']}", flush=True
            )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": describe_environment(), "fast": arguments.fast, "results": results}
    partial = arguments.out.with_name(f".{arguments.out.name}.partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(arguments.out)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
