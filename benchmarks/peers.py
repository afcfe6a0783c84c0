"""Environments of their own for the libraries that a benchmark compares with."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent / ".cache" / "peers"


def peer_python(name: str, requirements: Sequence[str], *, python: str = sys.executable) -> Path:
    """Path of a Python that has `requirements` installed, made on first use and kept.

    Args:
      name: of the environment, for example "neural-tangents".
      requirements: what pip installs there, pinned.
      python: the interpreter that makes the environment.
    Raises:
      RuntimeError: pip failed; the message ends with its last lines.
    """
    digest = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:10]
    folder = ROOT / f"{name}-{digest}"
    executable = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        done = subprocess.run(
            [str(executable), "-m", "pip", "install", "--quiet", *requirements],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-8:])
            raise RuntimeError(f"peer_python: could not install {name} ({requirements}):\n{tail}")
        ready.touch()
    return executable
