"""The one error of files: what is wrong with which file, and what to do about it."""

from collections.abc import Iterable
from pathlib import Path


class DataError(ValueError):
    """A data file is missing, cut short or of another format; one line names file and fix."""


def existing_file(path: str | Path, *, fix: str = "check the path") -> Path:
    """The path, if a file that is not empty stands there.

    Raises:
      DataError: no file, a folder, or zero bytes.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file; {fix}.")
    if not path.exists():
        raise DataError(f"{path} does not exist; {fix}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy or download it again.")
    return path


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message, at most `limit` of them."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest if names else "nothing"
