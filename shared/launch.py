"""What a command does once around a run: processes, compilation cache, and SIGTERM."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of several, before anything else uses JAX.

    Args:
      coordinator: "host:port" of process 0; None: found by JAX (SLURM, Open MPI, TPU pods).
      num_processes, process_id: given together with `coordinator`.
    Raises:
      ValueError: only some of the three are given, or the processes cannot be joined.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError("coordinator, num_processes and process_id must be given together.")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"cannot join the other processes: {error}") from error


def use_compilation_cache(folder: str | Path | None = None) -> Path | None:
    """Keeps compiled programs between runs, in a folder that belongs to the user alone.

    Args:
      folder: by default JAX_COMPILATION_CACHE_DIR where it is set, else `optgen/xla` in the user's
        cache folder; "" for none. It holds executable code: share it with nobody.
    Returns:
      The folder, or None where there is no cache.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or (
            Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "optgen" / "xla"
        )
    if str(folder) == "":
        return None
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None  # a read-only home costs compile time, nothing else
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return path


class Preemption:
    """Says after which step to save and leave, once the process was sent SIGTERM.

    In one process a handler is installed for the length of a `with` block. Several processes were
    joined by `join_processes`; there JAX's own service makes them agree on one step.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before: Any = None
        self._several = jax.process_count() > 1

    def __call__(self, step: int) -> bool:
        """Whether to stop after `step`; on several processes all must ask, in step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()

    def __enter__(self) -> "Preemption":
        if not self._several:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._several:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()
