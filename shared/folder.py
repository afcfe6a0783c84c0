"""The folder of a run: whose it is, and the small files that say what made its numbers."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax

from shared.config import Config
from shared.environment import describe_environment

# A run may be continued with other values of these: they do not change what it computes, but for
# the rounding that another number of devices brings.
FREE_KEYS = frozenset(
    {"num_devices", "parallelism", "keep_checkpoints", "profile_start", "profile_steps", "prefetch"}
    | {"tensorboard", "wandb_project", "missing_objective"}
)


def open_folder(workdir: str | Path, config: Config) -> Path:
    """Makes the folder of a run, or finds the run of this very config in it.

    Writes `config.json` and `environment.json` where they are not there yet; never changes them.

    Raises:
      ValueError: the folder holds a run of another config, or cannot be written to.
    """
    folder = Path(workdir)
    plain = to_json(config)
    file = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            check_same(json.loads(file.read_text()), plain, str(folder))
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
        if jax.process_index() == 0:
            _write_once(file, plain)
            _write_once(folder / "environment.json", describe_environment())
    except OSError as error:
        raise ValueError(f"workdir {str(folder)!r} cannot be used: {error}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); choose another workdir.") from error
    return folder


def to_json(config: Config) -> dict[str, Any]:
    """The config as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def check_same(saved: dict[str, Any], config: dict[str, Any], where: str) -> None:
    """Refuses to continue a run with a config that would have made another one.

    Raises:
      ValueError: naming every key that differs and both values.
    """
    before, now = _flat(saved), _flat(config)
    differences = [
        f"{key} is {before.get(key, 'absent')!r} there and {now.get(key, 'absent')!r} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_KEYS
    ]
    if differences:
        raise ValueError(
            f"{where} holds a run with another config: {'; '.join(differences)}. "
            "Choose another workdir."
        )


def warn_of_other_versions(saved: dict[str, Any]) -> None:
    """Warns where the checkpoint was written by other versions than those that read it."""
    now = describe_environment()
    other = [
        f"{name} {version} then, {now['packages'].get(name)} now"
        for name, version in saved.get("packages", {}).items()
        if now["packages"].get(name) != version
    ]
    if other:
        warnings.warn(
            f"the run goes on with other versions ({'; '.join(other)}): its numbers may not be "
            "those of an unbroken run.",
            stacklevel=2,
        )


def _write_once(file: Path, content: dict[str, Any]) -> None:
    if file.exists():
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(file)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
