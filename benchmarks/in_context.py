"""In-context learning: training steps beside PyTorch, closed derivatives beside autodiff.

Times are CPU seconds of turns taken one after the other. The last row is a study, not a feature:
Newton with a sampled Hessian at n = 1e5, d = 20, which the package does not offer.
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
    """Newton with a Hessian of sampled rows beside the exact one: time to the same gradient."""
    n, d, sample = (20_000, 20, 1000) if fast else (100_000, 20, 4000)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        A, b = rng.normal(size=(n, d)), rng.dirichlet(np.ones(n))
        start = 0.3 * rng.normal(size=d)
        # Sampling by squared row norms, once: leverage scores cost as much as an exact Hessian.
        share = np.sum(A**2, axis=1)
        share /= share.sum()
        chosen = rng.choice(n, sample, p=share)
        scale = 1 / (sample * share[chosen])
        data = jax.tree.map(jnp.asarray, (A, b, start, chosen, scale))
        solvers = {
            "exact": functools.partial(_solve, *data, exact=True),
            "sampled": functools.partial(_solve, *data, exact=False),
        }
        counts = {name: int(solve()[1]) for name, solve in solvers.items()}
        timings = interleave(solvers, baseline="exact", rounds=3 if fast else 9)
    ratio = timings["sampled"].ratio
    return {
        "name": f"Newton, sampled ({counts['sampled']} steps) / exact ({counts['exact']}), wall",
        "ours": timings["exact"].median_s,
        "peer": timings["sampled"].median_s,
        "ratio": ratio,
        "bar": ">= 1 (the package keeps the exact one alone)",
        "holds": ratio >= 1,
    }


@functools.partial(jax.jit, static_argnames="exact")
def _solve(A, b, start, chosen, scale, *, exact):
    """Newton steps until the gradient has shrunk by 1e8, at most 200."""
    # The curvature of the loss is of order 1 / n^2 here, and so are squared weights that matter.
    weights = jnp.full(len(b), 1.0 / len(b))

    def matrix(x):
        if exact:
            return softmax_regression.hessian(A, x, b, weights=weights)
        f = softmax_regression.softmax(A, x)
        curvature = (f * (2 * f - b - jnp.sum(f * (f - b))))[chosen]
        rows = A[chosen] - jnp.matmul(f, A)[None, :]
        ridge = ((weights[chosen] ** 2 * scale)[:, None] * A[chosen]).T @ A[chosen]
        return ((curvature * scale)[:, None] * rows).T @ rows + ridge

    def body(state):
        x, count, g = state
        values, vectors = jnp.linalg.eigh(matrix(x))
        x = x - vectors @ ((vectors.T @ g) / jnp.abs(values))
        return x, count + 1, softmax_regression.gradient(A, x, b, weights=weights)

    def running(state):
        return (jnp.linalg.norm(state[2]) > 1e-8 * first) & (state[1] < 200)

    g = softmax_regression.gradient(A, start, b, weights=weights)
    first = jnp.linalg.norm(g)
    return jax.lax.while_loop(running, body, (start, 0, g))
