"""In-context learning: training steps beside PyTorch, closed derivatives beside autodiff.

Times are CPU seconds of turns taken one after the other; Newton with a sampled Hessian beside the
exact one is measured on the wall.
"""

import functools
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.interleave import interleave
from benchmarks.peers import peer_python
from in_context import softmax_attention, softmax_regression, tasks

PEER = Path(__file__).with_name("_in_context_torch.py")
BARS = {2: 3.0, 4: 4.0}


def run(fast: bool) -> list[dict[str, Any]]:
    """Rows of ratios: PyTorch, autodiff, sampling."""
    rows = [training(heads, fast) for heads in BARS]
    rows += derivatives(fast)
    rows.append(sampled_newton(fast))
    return rows


def training(heads: int, fast: bool) -> dict[str, Any]:
    """CPU seconds per training step, data included: d 5, n 40, batch 256."""
    steps, rounds = (50, 3) if fast else (300, 9)
    python = peer_python("torch", ["torch==2.13.0"])
    prior = 0.2 * jnp.eye(5)
    task = tasks.LinearRegression(40, 5, noise=0.1**0.5, prior=prior)
    step = jax.jit(
        functools.partial(
            softmax_attention.train, dim=5, num_heads=heads, num_steps=steps, num_records=1
        )
    )
    jax.block_until_ready(step(task, key=jax.random.key(0)))
    ours, theirs = [], []
    with subprocess.Popen(
        [str(python), str(PEER), str(heads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        requests, answers = peer.stdin, peer.stdout
        assert requests is not None
        assert answers is not None

        def ask(count: int) -> float:
            requests.write(f"{count}\n")
            requests.flush()
            return float(answers.readline())

        ask(5)
        for turn in range(rounds):
            theirs.append(ask(steps) / steps)
            start = time.process_time()
            jax.block_until_ready(step(task, key=jax.random.key(turn)))
            ours.append((time.process_time() - start) / steps)
        requests.close()
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    return {
        "name": f"training step, {heads} heads, PyTorch / ours, CPU",
        "ours": statistics.median(ours),
        "peer": statistics.median(theirs),
        "ratio": ratio,
        "bar": f">= {BARS[heads]:g}",
        "holds": ratio >= BARS[heads],
    }


def derivatives(fast: bool) -> list[dict[str, Any]]:
    """Closed Hessian and Hessian-vector product beside autodiff's, n 2000, d 100, float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        A, b = jnp.asarray(rng.normal(size=(2000, 100))), jnp.asarray(rng.dirichlet(np.ones(2000)))
        x, v = jnp.asarray(0.1 * rng.normal(size=100)), jnp.asarray(rng.normal(size=100))

        def loss(x):
            return 0.5 * jnp.sum((jax.nn.softmax(A @ x) - b) ** 2)

        contenders = {
            "Hessian": (
                jax.jit(lambda x: softmax_regression.hessian(A, x, b)),
                jax.jit(jax.hessian(loss)),
                x,
                lambda ratio: ratio >= 2.5,
                ">= 2.5",
            ),
            "Hessian-vector product": (
                jax.jit(lambda v: softmax_regression.hvp(A, x, b, v)),
                jax.jit(lambda v: jax.jvp(jax.grad(loss), (x,), (v,))[1]),
                v,
                lambda ratio: ratio >= 0.9,
                ">= 0.9 (no slower, within noise)",
            ),
        }
        rows = []
        for name, (closed, autodiff, argument, holds, bar) in contenders.items():
            timings = interleave(
                {
                    "closed": functools.partial(closed, argument),
                    "autodiff": functools.partial(autodiff, argument),
                },
                baseline="closed",
                rounds=7 if fast else 31,
                calls=10,
                clock=time.process_time,
            )
            ratio = timings["autodiff"].ratio
            rows.append(
                {
                    "name": f"{name}, autodiff / closed form, CPU",
                    "ours": timings["closed"].median_s,
                    "peer": timings["autodiff"].median_s,
                    "ratio": ratio,
                    "bar": bar,
                    "holds": holds(ratio),
                }
            )
    return rows


def sampled_newton(fast: bool) -> dict[str, Any]:
    """Newton with a Hessian of a fifth of the rows beside the exact one: to the same gradient."""
    n, d = (20_000, 20) if fast else (100_000, 20)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        A, b = jnp.asarray(rng.normal(size=(n, d))), jnp.asarray(rng.dirichlet(np.ones(n)))
        # The curvature of the loss is of order 1 / n^2 here: squared weights of that size matter.
        weights, start = jnp.full(n, 1.0 / n), jnp.asarray(0.3 * rng.normal(size=d))
        exact = functools.partial(_exact_newton, A, b, weights, start)
        sampled = functools.partial(
            softmax_regression.sampled_newton,
            A,
            b,
            num_sampled=n // 5,
            weights=weights,
            x0=start,
            key=jax.random.key(0),
        )
        end, steps = sampled(), int(exact()[1])
        solvers = {"exact": exact, "sampled": sampled}
        timings = interleave(solvers, baseline="sampled", rounds=3 if fast else 15)
    ratio = timings["exact"].ratio
    return {
        "name": f"Newton at n {n}, exact ({steps} steps) / a fifth of the rows "
        f"({int(end.num_iterations)}), wall",
        "ours": timings["sampled"].median_s,
        "peer": timings["exact"].median_s,
        "ratio": ratio,
        "bar": ">= 1",
        "holds": ratio >= 1 and bool(end.converged),
    }


@jax.jit
def _exact_newton(A, b, weights, start):
    """The same directions from the exact Hessian, without a line search: the fastest exact loop."""

    def slope(x):
        return softmax_regression.gradient(A, x, b, weights=weights)

    def body(state):
        x, count, g = state
        matrix = softmax_regression.hessian(A, x, b, weights=weights)
        values, vectors = jnp.linalg.eigh(matrix)
        x = x - vectors @ ((vectors.T @ g) / jnp.abs(values))
        return x, count + 1, slope(x)

    first = slope(start)

    def running(state):
        return (jnp.linalg.norm(state[2]) > 1e-8 * jnp.linalg.norm(first)) & (state[1] < 200)

    return jax.lax.while_loop(running, body, (start, 0, first))
