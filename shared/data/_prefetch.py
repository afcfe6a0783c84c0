"""Batches made ready by a thread while the device works."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


class Prefetch:
    """Calls `make(step)` for step = start, start + 1, ... ahead of the consumer, in order.

    An error in `make` is raised where the batch would have been returned. Use it in a `with` block,
    or call `close`, so that the thread ends.

    Args:
      make: step -> batch; called in one thread only.
      start: first step.
      stop: step after the last one, or None for no end.
      depth: batches that may be ready at a time, at least 1.

    >>> with Prefetch(lambda step: step**2, 2, 5) as batches:
    ...     list(batches)
    [4, 9, 16]
    """

    def __init__(
        self, make: Callable[[int], Any], start: int, stop: int | None = None, *, depth: int = 2
    ):
        if depth < 1:
            raise ValueError(f"Prefetch: depth must be at least 1, got {depth!r}.")
        self._make, self._step, self._stop = make, start, stop
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        step = self._step
        while not self._closed.is_set() and (self._stop is None or step < self._stop):
            try:
                item = self._make(step)
            except BaseException as error:  # handed over, and raised by the consumer
                self._put(_Failure(error))
                return
            self._put(item)
            step += 1

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.05)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The batch of the next step."""
        if self._closed.is_set() or (self._stop is not None and self._step >= self._stop):
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        self._step += 1
        return item

    def close(self) -> None:
        """Ends the thread and drops what is ready; may be called twice."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
