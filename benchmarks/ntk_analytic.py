"""Infinite-width kernels beside neural-tangents 0.6.5 in an environment of its own.

CPU seconds of alternating calls, float32, kernel "ntk"; temporary memory is what XLA reserves.
Both libraries run compiled and warm. Rows without a peer compare ours with ours, or with a bar.
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks.peers import peer_python
from ntk import stax

PEER = ["neural-tangents==0.6.5", "jax==0.4.30", "jaxlib==0.4.30", "numpy<2", "scipy<1.13"]
# The same source builds the networks in both environments.
CASES = """
import numpy as np
def network(stax, name):
    dense = lambda act: [layer for _ in range(5) for layer in (stax.Dense(512, 1.5, 0.1), act)]
    conv = lambda n: [layer for _ in range(n) for layer in (
        stax.Conv(512, (3, 3), padding="SAME", W_std=1.4, b_std=0.1), stax.Relu())]
    layers = {
        "fc_relu": lambda: dense(stax.Relu()),
        "fc_erf": lambda: dense(stax.Erf()),
        "cnn_flatten": lambda: [*conv(5), stax.Flatten()],
        "cnn_pool": lambda: [*conv(3), stax.GlobalAvgPool()],
    }[name]()
    return stax.serial(*layers, stax.Dense(1))
def data(name, fast):
    shape = {"cnn_flatten": (64, 16, 16, 3), "cnn_pool": (24, 16, 16, 3)}.get(name, (2000, 784))
    if fast:
        shape = (shape[0] // 4, *shape[1:])
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for _ in range(2)]
"""
SERVER = """
import json, sys, time, jax
from neural_tangents import stax
ready = {}
for line in sys.stdin:
    name, own, fast = json.loads(line)
    key = (name, own, fast)
    if key not in ready:
        x1, x2 = data(name, fast)
        kernel_fn = jax.jit(network(stax, name)[2], static_argnames="get")
        compiled = kernel_fn.lower(x1, None if own else x2, get="ntk").compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        ready[key] = (lambda f=compiled, a=x1, b=None if own else x2: f(a, b)), memory
        jax.block_until_ready(ready[key][0]())
    start = time.process_time()
    jax.block_until_ready(ready[key][0]())
    print(json.dumps([time.process_time() - start, ready[key][1]]), flush=True)
"""
BARS = {"fc_relu": 5.0, "fc_erf": 4.0, "cnn_flatten": 3.0, "cnn_pool": 8.0}
OWN_BARS = {"fc_relu": 1.5, "cnn_pool": 1.6}


def ours(name: str, own: bool, fast: bool, max_memory: float | None = None):
    """A call of our kernel, and its temporary memory."""
    scope: dict[str, Any] = {}
    exec(CASES, scope)
    x1, x2 = scope["data"](name, fast)
    kernel_fn = scope["network"](stax, name)[2]
    second = None if own else x2
    options = {"get": "ntk", "max_memory": max_memory}
    compiled = jax.jit(lambda a, b: kernel_fn(a, b, **options)).lower(x1, second).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return (lambda: compiled(x1, second)), memory.temp_size_in_bytes


def seconds(call) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def compile_seconds(depth: int) -> float:
    """CPU seconds to trace and compile a fully connected network."""
    layers = [layer for _ in range(depth) for layer in (stax.Dense(1, 1.5, 0.1), stax.Relu())]
    kernel_fn = stax.serial(*layers, stax.Dense(1))[2]
    x = np.random.default_rng(depth).normal(size=(20, 5)).astype("float32")
    start = time.process_time()
    jax.jit(lambda a: kernel_fn(a, None, "ntk")).lower(x).compile()
    return time.process_time() - start


def import_seconds() -> float:
    """CPU seconds of `import ntk` once JAX is there, in a fresh interpreter."""
    code = "import time, jax; s = time.process_time(); import ntk; print(time.process_time() - s)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    return statistics.median(float(run.stdout) for run in runs)


#: Budgets in bytes, well below what a whole kernel would take.
BUDGETS = {"fc_relu": 8e6, "cnn_flatten": 2e6, "cnn_pool": 3e6}


def run(fast: bool) -> list[dict[str, Any]]:
    """Rows of the table; see `benchmarks.__main__`."""
    python = peer_python("neural-tangents", PEER)
    rows = []
    server = subprocess.Popen(
        [str(python), "-c", CASES + SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    requests, answers = server.stdin, server.stdout
    assert requests is not None
    assert answers is not None

    def peer(name, own):
        requests.write(json.dumps([name, own, fast]) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    try:
        for name, bar in BARS.items():
            (cross, memory), (alone, _) = ours(name, False, fast), ours(name, True, fast)
            for call in (cross, alone):
                seconds(call)  # the first call warms up
            rounds = 1 if name == "cnn_pool" else 9  # of the peer, which takes 20 s there
            mine, symmetric, theirs, peer_memory = [], [], [], 0
            for i in range(9):
                mine.append(seconds(cross))
                if i < rounds:
                    took, peer_memory = peer(name, False)
                    theirs.append(took)
                symmetric.append(seconds(alone))
            ratio = statistics.median(b / a for a, b in zip(mine, theirs))
            rows.append({
                "name": f"{name}: CPU seconds of neural-tangents over ours",
                "ours": statistics.median(mine), "peer": statistics.median(theirs),
                "ratio": ratio, "bar": f">= {bar}", "holds": ratio >= bar,
            })  # fmt: skip
            if name in OWN_BARS:
                gain = statistics.median(a / b for a, b in zip(mine, symmetric))
                rows.append({
                    "name": f"{name}: x2 given over x2 = None",
                    "ours": statistics.median(symmetric), "peer": statistics.median(mine),
                    "ratio": gain, "bar": f">= {OWN_BARS[name]}", "holds": gain >= OWN_BARS[name],
                })  # fmt: skip
            if name == "cnn_pool":
                rows.append({
                    "name": "cnn_pool: temporary memory, bytes", "ours": memory,
                    "peer": peer_memory, "ratio": peer_memory / memory, "bar": "ours <= 160 MB",
                    "holds": memory <= 160e6,
                })  # fmt: skip
    finally:
        requests.close()
        server.wait(timeout=60)
    for name, budget in BUDGETS.items():
        used = ours(name, False, fast, budget)[1]
        rows.append({
            "name": f"{name}: temporary memory over max_memory, bytes", "ours": used,
            "peer": budget, "ratio": used / budget, "bar": "<= 1.2", "holds": used <= 1.2 * budget,
        })  # fmt: skip
    took = import_seconds()
    rows.append({
        "name": "import ntk over import jax, CPU seconds", "ours": took, "peer": 0.3,
        "ratio": took / 0.3, "bar": "ours <= 0.3 s", "holds": took <= 0.3,
    })  # fmt: skip
    compile_seconds(3)
    shallow, deep = compile_seconds(10), compile_seconds(50)
    rows.append({
        "name": "trace and compile, depth 50 over depth 10", "ours": deep, "peer": shallow,
        "ratio": deep / shallow, "bar": "<= 1.3", "holds": deep <= 1.3 * shallow,
    })  # fmt: skip
    return rows
