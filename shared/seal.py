"""Checksums of the files in a folder: a damaged one is known by its name before it is read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

NAME = "sha256.json"


def seal(folder: Path, *, leave_out: Sequence[str] = ()) -> None:
    """Writes `sha256.json`, the hash of every file below the folder but those named `leave_out`."""
    hashes = {
        str(path.relative_to(folder)): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }
    (folder / NAME).write_text(json.dumps(hashes, indent=1))


def find_damage(folder: Path) -> str | None:
    """What is wrong with which file; None where all is well, or where there is no seal to ask."""
    file = folder / NAME
    if not file.exists():
        return None
    try:
        hashes = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        return f"{file} cannot be read"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if _hash(path) != expected:
            return f"{path} was changed (SHA-256 differs)"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
