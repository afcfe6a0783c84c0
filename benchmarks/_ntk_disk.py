"""A fully connected kernel on disk, in a process of its own, so that its memory can be watched.

`python -m benchmarks._ntk_disk build FOLDER N` computes it block by block and goes on after a kill;
`python -m benchmarks._ntk_disk solve FOLDER` factorizes it where it lies. Each prints a JSON line.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

DEPTH, INPUTS, BLOCK = 3, 64, 1000


class Watch:
    """The largest memory of this process outside of mapped files while the block runs."""

    def __enter__(self) -> "Watch":
        self.before = self.peak = _anonymous()
        self.running = True
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        self.start = time.process_time()
        return self

    def _look(self) -> None:
        while self.running:
            self.peak = max(self.peak, _anonymous())
            time.sleep(0.01)

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.start
        self.running = False
        self.thread.join()

    def report(self, **more: Any) -> None:
        """Prints what was seen: CPU seconds, and bytes on top of those before."""
        found = {"seconds": self.seconds, "bytes": self.peak - self.before, **more}
        print(json.dumps(found), flush=True)


def _anonymous() -> int:
    """Bytes of memory that no file stands behind (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not report RssAnon")


def build(folder: Path, count: int) -> None:
    """The tangent kernel of a ReLU network on random inputs."""
    import ntk
    from ntk import stax

    layers = [part for _ in range(DEPTH) for part in (stax.Dense(1, 1.4, 0.1), stax.Relu())]
    _, _, kernel_fn = stax.serial(*layers, stax.Dense(1, 1.4, 0.1))
    x = np.random.default_rng(0).normal(size=(count, INPUTS)).astype(np.float32)
    kernel_fn(x[:BLOCK], x[:BLOCK], "ntk").block_until_ready()
    with Watch() as watch:
        ntk.batch(kernel_fn, BLOCK, 0, out=folder)(x, None, "ntk")
    watch.report()


def solve(folder: Path) -> None:
    """(K + noise)^-1 y by one Cholesky factorization inside the file."""
    from scipy.linalg import cho_factor, cho_solve

    kernel = np.load(folder / "kernel.npy", mmap_mode="r+")
    count = len(kernel)
    y = np.random.default_rng(1).normal(size=(count, 10)).astype(np.float32)
    np.einsum("ii->i", kernel)[:] += 0.1 * kernel[0, 0]
    diagonal = np.array(np.diagonal(kernel))
    with Watch() as watch:
        # By columns the rows of the file are its columns, so LAPACK takes it as it is. The half
        # below the diagonal of the file stays what it was.
        factor, lower = cho_factor(kernel.T, lower=True, overwrite_a=True, check_finite=False)
        weights = cho_solve((factor, lower), y, check_finite=False)
    product = diagonal[:, None] * weights
    for start in range(0, count, BLOCK):
        rows = np.array(kernel[start : start + BLOCK])
        below = np.tril(rows, start - 1)
        product[start : start + BLOCK] += below @ weights
        product += below.T @ weights[start : start + BLOCK]
    residual = float(np.linalg.norm(product - y) / np.linalg.norm(y))
    watch.report(in_place=bool(np.shares_memory(factor, kernel)), residual=residual)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        solve(Path(sys.argv[2]))
