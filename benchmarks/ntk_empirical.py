"""Kernels of finite networks, and prediction, beside neural-tangents 0.6.5 and one LAPACK call.

Times are CPU seconds of alternating runs. Memory is the temporary memory of the compiled program.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk
from benchmarks._ntk_models import (
    cnn,
    filters,
    five_more_models,
    layers,
    mlp,
    ten_models,
    weights,
)
from benchmarks.interleave import interleave
from benchmarks.peers import peer_python

TURN_S = 0.03  # least CPU time of one turn of short calls
PEER = [
    "neural-tangents==0.6.5",
    "jax==0.4.30",
    "jaxlib==0.4.30",
    "numpy<2",
    "scipy<1.13",
]
# The same two networks in the other library's environment; answers each line with CPU seconds.
SERVER = """
import sys, time, jax, jax.numpy as jnp, numpy as np
from jax import lax
import neural_tangents as nt
rng = np.random.default_rng(0)
w = lambda *s: jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32)
def mlp(p, x):
    for k, (a, b) in enumerate(p):
        x = x @ a + b
        x = jax.nn.relu(x) if k < len(p) - 1 else x
    return x
def cnn(p, x):
    for a, b in p[0]:
        x = jax.nn.relu(lax.conv_general_dilated(x, a, (1, 1), "SAME",
                        dimension_numbers=("NHWC", "HWIO", "NHWC")) + b)
    return x.mean((1, 2)) @ p[1]
cases = {
    "mlp": (mlp, [(w(256, 512), w(512)), (w(512, 512), w(512)), (w(512, 10), w(10))], w(64, 256)),
    "cnn": (cnn, ([(w(3, 3, 3, 32), w(32)), (w(3, 3, 32, 32), w(32)), (w(3, 3, 32, 32), w(32))],
                  w(32, 10)), w(16, 16, 16, 3)),
}
compiled = {}
for line in sys.stdin:
    name, method, axes = line.split()
    f, p, x = cases[name]
    key = (name, method, axes)
    if key not in compiled:
        fn = nt.empirical_ntk_fn(f, (), (), None if axes == "None" else 0, int(method))
        compiled[key] = jax.jit(lambda x, p, fn=fn: fn(x, None, p))
        compiled[key](x, p).block_until_ready()
    start = time.process_time()
    compiled[key](x, p).block_until_ready()
    print("seconds", time.process_time() - start, flush=True)
"""


class Peer:
    """The other library, answering in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [str(peer_python("neural-tangents", PEER)), "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, name: str, method: int, axes: str = "None") -> float:
        """CPU seconds of one call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {method} {axes}\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("seconds"):
            if not line:
                raise RuntimeError(f"the other library stopped at {name} {method}")
        return float(line.split()[1])

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()


def reference_cases() -> dict[str, tuple]:
    """The two networks of the bars: function, parameters, inputs."""
    return {
        "mlp": (mlp, layers(256, 512, 512, 10), weights(9, 64, 256)),
        "cnn": (cnn, (filters(3, 32, 32, 32), weights(8, 32, 10)), weights(9, 16, 16, 16, 3)),
    }


def _row(name: str, ours: float, peer: float, limit: float, bar: str, **more: Any) -> dict:
    ratio = ours / peer
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "bar": bar,
        "holds": bool(ratio <= limit),
        **more,
    }


def _cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - start


def against_neural_tangents(fast: bool) -> list[dict]:
    """The default call against the other library's methods, run in turns."""
    peer, rows = Peer(), []
    try:
        for name, (f, params, x) in reference_cases().items():
            kernel_fn = ntk.empirical_ntk_fn(f, ())

            def call(kernel_fn=kernel_fn, x=x, params=params):
                return kernel_fn(x, None, params)

            jax.block_until_ready(call())
            rivals = [(1, "None")] if name == "mlp" else [(1, "0"), (2, "0"), (1, "None")]
            ours, theirs = [], {rival: [] for rival in rivals}
            for turn in range(3 if fast else 7):
                ours.append(_cpu_seconds(call))
                for rival in rivals if turn < 3 else rivals[:1]:
                    theirs[rival].append(peer.seconds(name, *rival))
            own = float(np.median(ours))
            best = min(float(np.median(t)) for t in theirs.values())
            limit, bar = (0.01, "<= 1/100") if name == "mlp" else (1.0, "<= 1")
            label = "its default" if name == "mlp" else "its best method"
            rows.append(_row(f"{name}: default call against {label}, CPU s", own, best, limit, bar))
            compiled = jax.jit(lambda x, p, k=kernel_fn: k(x, None, p)).lower(x, params).compile()
            analysis: Any = compiled.memory_analysis()
            memory = analysis.temp_size_in_bytes / 1e6
            if name == "mlp":
                rows.append(
                    _row("mlp: temporary memory in units of 20 MB", memory, 20.0, 1.0, "<= 1")
                )
    finally:
        peer.close()
    return rows


def default_against_best(fast: bool) -> list[dict]:
    """The default call against each method, on fifteen models."""
    rows = []
    for name, model in {**ten_models(), **five_more_models()}.items():
        ratio, spread = _against_best(*model, rounds=5 if fast else 9)
        row = _row(f"{name}: default against best method, CPU s", ratio, 1.0, 1.5, "<= 1.5")
        rows.append({**row, "quartiles": spread})
    return rows


def _against_best(f: Any, params: Any, x: Any, *, rounds: int) -> tuple[float, list[float]]:
    """Median over rounds of default over best method, and the quartiles of that ratio."""
    calls = {}
    for method in range(4):
        kernel_fn = ntk.empirical_ntk_fn(f, (), implementation=method)
        calls[str(method)] = lambda k=kernel_fn: k(x, None, params)
        jax.block_until_ready(calls[str(method)]())
    once = {k: min(_cpu_seconds(call) for _ in range(3)) for k, call in calls.items()}
    quickest = min(once.values())
    near = {k: call for k, call in calls.items() if k == "0" or once[k] < 4 * quickest}
    # The default is one of the three: a turn of its calls is long enough to be timed.
    repeats = max(1, math.ceil(TURN_S / quickest))
    turns = interleave(near, baseline="0", rounds=rounds, calls=repeats, clock=time.process_time)
    best = min((t for k, t in turns.items() if k != "0"), key=lambda t: t.ratio)
    return 1.0 / best.ratio, [1.0 / best.high, 1.0 / best.low]


def prediction(fast: bool) -> list[dict]:
    """Fit and predict against one factorization by the same LAPACK."""
    n, m, outputs = (1000, 100, 10) if fast else (2000, 200, 10)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n + m, n + m)).astype(np.float32)
    full = jnp.asarray(a @ a.T / n)
    dd, td = full[:n, :n], full[n:, :n]
    y = jnp.asarray(rng.normal(size=(n, outputs)).astype(np.float32))
    times = jnp.asarray([0.1, 1.0, 10.0, 100.0, 1000.0], jnp.float32)
    rows = []
    for label, peer, factorize, t, bar, rounds in (
        ("5 times", "eigh", jnp.linalg.eigh, times, 1.2, 3 if fast else 5),
        ("t=infinity", "Cholesky", jnp.linalg.cholesky, None, 1.3, 15 if fast else 21),
    ):
        plain = jax.jit(factorize)
        kept = ntk.predict.gradient_descent_mse(dd, y)
        turns = interleave(
            {
                "peer": lambda plain=plain: plain(dd),
                "first": lambda t=t: ntk.predict.gradient_descent_mse(dd, y)(t, 0.0, 0.0, td),
                "again": lambda kept=kept, t=t: kept(t, 0.0, 0.0, td),
            },
            baseline="peer",
            rounds=rounds,
            clock=time.process_time,
        )
        first, again = turns["first"], turns["again"].median_s / turns["first"].median_s
        title = f"predict at {label}, n={n}"
        rows.append(_row(f"{title}, against {peer}", first.ratio, 1.0, bar, f"<= {bar}"))
        rows.append(_row(f"{title}, second call against first", again, 1.0, 0.05, "<= 0.05"))
    return rows


def to_disk(fast: bool) -> list[dict]:
    """A fully connected kernel in blocks to a file, killed half way, and solved where it lies."""
    n = 2000 if fast else 10_000
    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root) / "whole", Path(root) / "killed"
        built = _child("build", whole, str(n))
        _kill_half_way(killed, n)
        _child("build", killed, str(n))
        same = (whole / "kernel.npy").read_bytes() == (killed / "kernel.npy").read_bytes()
        size = (whole / "kernel.npy").stat().st_size
        solved = _child("solve", whole)
    scale = 50_000 / n
    return [
        _row(f"kernel {n} x {n} killed and resumed: differs", float(not same), 1.0, 0.0, "no bit"),
        _row(
            f"kernel {n} x {n} to a file: extrapolated CPU hours for 50,000",
            built["seconds"] * scale**2 / 3600,
            1.0,
            1.0,
            "<= 1",
        ),
        _row("memory of its blocks beside the file, in GB", built["bytes"] / 1e9, 1.0, 1.0, "<= 1"),
        _row("memory of the solver beside the file", solved["bytes"], size, 0.1, "<= 0.1"),
        _row("residual of the solution", solved["residual"], 1.0, 1e-3, "<= 1e-3"),
        _row("factor outside of the file", float(not solved["in_place"]), 1.0, 0.0, "no"),
        _row(
            "its Cholesky: extrapolated CPU hours for 50,000",
            solved["seconds"] * scale**3 / 3600,
            1.0,
            2.0,
            "<= 2",
        ),
    ]


CHILD = [sys.executable, "-m", "benchmarks._ntk_disk"]


def _child(task: str, folder: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run([*CHILD, task, str(folder), *more], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} of a kernel on disk failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _kill_half_way(folder: Path, n: int) -> None:
    """Starts the same computation and kills it (SIGKILL) when half of its blocks are written."""
    process = subprocess.Popen([*CHILD, "build", str(folder), str(n)], stdout=subprocess.DEVNULL)
    record = folder / "done.npy"
    while process.poll() is None:
        if (folder / "about.json").exists():
            done = np.load(record)
            if done.sum() >= math.comb(len(done) + 1, 2) // 2:
                process.kill()
                process.wait()
                return
        time.sleep(0.02)
    raise RuntimeError("the computation ended before it could be killed")


def run(fast: bool) -> list[dict]:
    """All rows."""
    return [
        *against_neural_tangents(fast),
        *default_against_best(fast),
        *prediction(fast),
        *to_disk(fast),
    ]
