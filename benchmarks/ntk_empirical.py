"""Kernels of finite networks, and prediction, beside neural-tangents 0.6.5 and one LAPACK call.

Times are CPU seconds of alternating runs. Memory is the temporary memory of the compiled program.
"""

import itertools
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ntk
from benchmarks.interleave import interleave
from benchmarks.peers import peer_python

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


def _weights(seed: int, *shape: int) -> jax.Array:
    scale = float(np.prod(shape[:-1])) ** 0.5
    values = np.random.default_rng(seed).normal(size=shape) / max(scale, 1.0)
    return jnp.asarray(values, jnp.float32)


def _mlp(params: Any, x: Any) -> Any:
    for k, (w, b) in enumerate(params):
        x = x @ w + b[None]
        x = jax.nn.relu(x) if k < len(params) - 1 else x
    return x


def _cnn(params: Any, x: Any) -> Any:
    for w, b in params[0]:
        x = lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + b[None, None, None])
    return x.mean((1, 2)) @ params[1]


def _layers(*sizes: int) -> list:
    pairs = itertools.pairwise(sizes)
    return [(_weights(k, a, b), _weights(50 + k, b)) for k, (a, b) in enumerate(pairs)]


def _filters(*sizes: int) -> list:
    return [
        (_weights(k, 3, 3, a, b), _weights(50 + k, b))
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    ]


def reference_cases() -> dict[str, tuple]:
    """The two networks of the bars: function, parameters, inputs."""
    return {
        "mlp": (_mlp, _layers(256, 512, 512, 10), _weights(9, 64, 256)),
        "cnn": (_cnn, (_filters(3, 32, 32, 32), _weights(8, 32, 10)), _weights(9, 16, 16, 16, 3)),
    }


def ten_models() -> dict[str, tuple]:
    """Models of many kinds; no rule was written for any of them."""

    def residual(params: Any, x: Any) -> Any:
        for w, v in params[1]:
            x = x + jnp.tanh(x @ w) @ v
        return x @ params[0]

    def recurrent(params: Any, x: Any) -> Any:
        def cell(h: Any, xt: Any) -> Any:
            return jnp.tanh(h @ params["w"] + xt @ params["u"]), None

        start = jnp.zeros((x.shape[0], params["w"].shape[0]))
        return lax.scan(cell, start, jnp.swapaxes(x, 0, 1))[0] @ params["o"]

    def attention(params: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("ntd,dhe->nthe", x, w) for w in params[:3])
        a = jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k), -1)
        return jnp.einsum("nhts,nshe,heo->nto", a, v, params[3]).mean(1)

    def gated(params: Any, x: Any) -> Any:
        return (jax.nn.sigmoid(x @ params[0]) * (x @ params[1])) @ params[2]

    def autoencoder(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params) @ params.T

    def batch_norm(params: Any, x: Any) -> Any:
        h = x @ params[0]
        h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
        return jax.nn.relu(h) @ params[1]

    def depthwise(params: Any, x: Any) -> Any:
        x = lax.conv_general_dilated(
            x,
            params[0],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
        return jax.nn.gelu(x).mean((1, 2)) @ params[1]

    w = _weights
    return {
        "scalar MLP": (_mlp, _layers(64, 256, 256, 1), w(9, 64, 64)),
        "wide output": (_mlp, _layers(32, 64, 200), w(9, 6, 32)),
        "small CNN": (_cnn, (_filters(3, 16, 16), w(8, 16, 10)), w(9, 8, 12, 12, 3)),
        "residual": (
            residual,
            (w(1, 64, 5), [(w(2, 64, 64), w(3, 64, 64)), (w(4, 64, 64), w(5, 64, 64))]),
            w(9, 32, 64),
        ),
        "recurrent": (
            recurrent,
            {"w": w(1, 64, 64), "u": w(2, 8, 64), "o": w(3, 64, 4)},
            w(9, 16, 12, 8),
        ),
        "attention": (
            attention,
            [w(1, 32, 4, 8), w(2, 32, 4, 8), w(3, 32, 4, 8), w(4, 4, 8, 5)],
            w(9, 12, 10, 32),
        ),
        "gated": (gated, [w(1, 64, 128), w(2, 64, 128), w(3, 128, 8)], w(9, 32, 64)),
        "tied autoencoder": (autoencoder, w(1, 32, 64), w(9, 16, 32)),
        "batch norm": (batch_norm, [w(1, 16, 64), w(2, 64, 3)], w(9, 12, 16)),
        "depthwise": (depthwise, [w(1, 3, 3, 1, 16), w(2, 16, 5)], w(9, 8, 10, 10, 16)),
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
    """The default call against each method, on ten models."""
    rows = []
    for name, (f, params, x) in ten_models().items():
        contenders = {}
        for method in range(4):
            kernel_fn = ntk.empirical_ntk_fn(f, (), implementation=method)
            contenders[str(method)] = lambda k=kernel_fn, x=x, params=params: k(x, None, params)
        timings = interleave(
            contenders, baseline="0", rounds=3 if fast else 7, clock=time.process_time
        )
        best = min(timings[str(m)].median_s for m in (1, 2, 3))
        rows.append(
            _row(
                f"{name}: default against best method, CPU s",
                timings["0"].median_s,
                best,
                1.5,
                "<= 1.5",
            )
        )
    return rows


def prediction(fast: bool) -> list[dict]:
    """Fit and predict against one factorization by the same LAPACK."""
    n, m, outputs = (600, 60, 10) if fast else (1500, 150, 10)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n + m, n + m)).astype(np.float32)
    full = jnp.asarray(a @ a.T / n)
    dd, td = full[:n, :n], full[n:, :n]
    y = jnp.asarray(rng.normal(size=(n, outputs)).astype(np.float32))
    eigh, cholesky = jax.jit(jnp.linalg.eigh), jax.jit(jnp.linalg.cholesky)
    times = jnp.asarray([0.1, 1.0, 10.0, 100.0, 1000.0], jnp.float32)

    def first(t: Any) -> Any:
        return ntk.predict.gradient_descent_mse(dd, y)(t, 0.0, 0.0, td)

    kept = ntk.predict.gradient_descent_mse(dd, y)
    rounds = 3 if fast else 5
    spectral = interleave(
        {
            "eigh": lambda: eigh(dd),
            "predict": lambda: first(times),
            "again": lambda: kept(times, 0.0, 0.0, td),
        },
        baseline="eigh",
        rounds=rounds,
        clock=time.process_time,
    )
    direct = interleave(
        {"cholesky": lambda: cholesky(dd), "predict": lambda: first(None)},
        baseline="cholesky",
        rounds=3 * rounds,
        clock=time.process_time,
    )
    one, two = spectral["predict"].median_s, spectral["again"].median_s
    return [
        _row(
            f"predict at 5 times, n={n}, against eigh",
            spectral["predict"].ratio,
            1.0,
            1.2,
            "<= 1.2",
        ),
        _row(
            f"predict at t=infinity, n={n}, against Cholesky",
            direct["predict"].ratio,
            1.0,
            1.3,
            "<= 1.3",
        ),
        _row("second call against first", two, one, 0.05, "<= 0.05"),
    ]


def to_disk(fast: bool) -> list[dict]:
    """A fully connected kernel in blocks to a file: memory on top of one block, and time."""
    n = 1500 if fast else 6000
    x = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)

    def kernel_fn(x1: Any, x2: Any) -> Any:
        second = x1 if x2 is None else x2
        dot = x1 @ second.T / x1.shape[1]
        norms = jnp.sqrt(
            jnp.sum(x1**2, 1)[:, None] * jnp.sum(second**2, 1)[None] / x1.shape[1] ** 2
        )
        for _ in range(3):
            cosine = jnp.clip(dot / norms, -1.0, 1.0)
            angle = jnp.arccos(cosine)
            dot = norms * (jnp.sin(angle) + (jnp.pi - angle) * cosine) / jnp.pi
        return dot

    with tempfile.TemporaryDirectory() as folder:
        seconds = _cpu_seconds(
            lambda: ntk.batch(kernel_fn, 1000, 0, out=Path(folder) / "kernel")(x, None)
        )
        size = sum(file.stat().st_size for file in Path(folder).rglob("kernel.npy"))
    hours = seconds * (50_000 / n) ** 2 / 3600
    row = _row(
        f"kernel {n} x {n} to a file: extrapolated CPU hours for 50,000", hours, 1.0, 1.0, "<= 1"
    )
    row["bytes"] = size
    return [row]


def run(fast: bool) -> list[dict]:
    """All rows."""
    return [
        *against_neural_tangents(fast),
        *default_against_best(fast),
        *prediction(fast),
        *to_disk(fast),
    ]
