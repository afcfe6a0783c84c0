"""Lion-K beside `optax.lion` and `optax.contrib.muon`: time of a step, bytes of state."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.interleave import interleave
from lion_lyapunov import analysis, kappas, lion_k, low_precision, muon

COUNT, SIZE = 16, 256  # matrices of SIZE x SIZE


def run(fast: bool) -> list[dict[str, Any]]:
    """Rows of times (16 matrices of 256 x 256, float32) and of bytes."""
    rounds, calls = (7, 3) if fast else (31, 10)
    rng = np.random.default_rng(0)
    params = {
        f"w{i}": jnp.asarray(rng.normal(size=(SIZE, SIZE)), jnp.float32) for i in range(COUNT)
    }
    grads = {
        name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in params.items()
    }
    steps = functools.partial(_rows, params=params, grads=grads)
    rows = steps(
        "optax.lion",
        {
            "optax.lion": optax.lion(1e-3, weight_decay=0.1),
            "l1": _lion_k(kappas.l1()),
            "huber": _lion_k(kappas.huber(1.0)),
            "log_cosh (tanh)": _lion_k(kappas.log_cosh(1.0)),
            "lp(1.5)": _lion_k(kappas.lp(1.5)),
            "lp(1.2)": _lion_k(kappas.lp(1.2)),
            "lp(2.7)": _lion_k(kappas.lp(2.7)),
            "lp(4)": _lion_k(kappas.lp(4)),
            "row_l2": _lion_k(kappas.row_l2()),
        },
        {
            "l1": 1.05,
            "huber": 1.05,
            "log_cosh (tanh)": 1.05,
            "lp(1.5)": 2.0,
            "lp(1.2)": 2.0,
            "lp(2.7)": 2.0,
            "lp(4)": 2.0,
            "row_l2": 2.0,
        },
        rounds=3 * rounds,
        calls=calls,
    )
    smooth = optax.chain(
        optax.scale_by_lion(mode="smooth"),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-3),
    )
    rows += steps(
        "optax's smooth mode",
        {"optax's smooth mode": smooth, "log_cosh (tanh)": _lion_k(kappas.log_cosh(1.0))},
        {"log_cosh (tanh)": 1.05},
        rounds=3 * rounds,
        calls=calls,
    )
    rows += steps(
        "optax.lion",
        {
            "optax.lion": optax.lion(1e-3, weight_decay=0.1),
            "top_k(1000)": _lion_k(kappas.top_k(1000)),
        },
        {"top_k(1000)": 30.0},
        rounds=rounds,
        calls=1,
    )
    rows += steps(
        "optax.contrib.muon",
        {
            "optax.contrib.muon": optax.contrib.muon(1e-3, weight_decay=0.1),
            "muon, certified Newton-Schulz": muon(1e-3, weight_decay=0.1),
            "muon, converged polar": muon(1e-3, weight_decay=0.1, method="polar"),
        },
        {"muon, certified Newton-Schulz": 1.05, "muon, converged polar": 3.0},
        rounds=rounds,
        calls=1,
    )
    return rows + _analysis(params, rounds) + _state(params)


def _lion_k(kappa: kappas.Kappa) -> optax.GradientTransformation:
    return lion_k(1e-3, kappa, weight_decay=0.1)


def _row(name: str, ours: float, peer: float, bar: float, ratio: float | None = None) -> dict:
    ratio = ours / peer if ratio is None else ratio
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "bar": f"<= {bar:g}",
        "holds": bool(ratio <= bar),
    }


def _rows(baseline, optimizers, bars, *, params, grads, rounds, calls):
    contenders = {}
    for name, optimizer in optimizers.items():

        def step(grads, state, params, optimizer=optimizer):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step)
        contenders[name] = functools.partial(compiled, grads, optimizer.init(params), params)
    # CPU seconds: other programs on the machine do not count.
    timings = interleave(
        contenders, baseline=baseline, rounds=rounds, calls=calls, clock=time.process_time
    )
    return [
        _row(
            f"step of {name} over {baseline}, CPU s",
            timings[name].median_s,
            timings[baseline].median_s,
            bar,
            timings[name].ratio,
        )
        for name, bar in bars.items()
    ]


class _State:
    def __init__(self, step, params, opt_state):
        self.step, self.params, self.opt_state = step, params, opt_state


def _analysis(params, rounds):
    """Training steps on a layered least-squares loss, with one probe before them and without.

    What the probe adds to 5 steps, divided by 10, is what it adds to 50: timed over 50, it would
    be a third of the noise.
    """
    optimizer = lion_k(1e-3, kappas.l1(), weight_decay=0.1)
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(64, SIZE)), jnp.float32)

    def loss_fn(params, batch):
        return sum(jnp.mean((batch @ w) ** 2) for w in params.values())

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss_fn)(params, inputs)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    probe = analysis.probe(kappas.l1(), loss_fn, learning_rate=1e-3, weight_decay=0.1)
    measure = jax.jit(lambda x, s: probe(_State(jnp.int32(0), x, s), inputs))

    def five(with_probe):
        x, state = params, optimizer.init(params)
        out = measure(x, state) if with_probe else None
        for _ in range(5):
            x, state = step(x, state)
        return x, out

    timings = interleave(
        {"plain": lambda: five(False), "probed": lambda: five(True)},
        baseline="plain",
        rounds=10 * rounds,
        clock=time.process_time,
    )
    plain, probed = timings["plain"], timings["probed"]
    ratio = 1.0 + (probed.ratio - 1.0) / 10.0
    return [
        _row(
            "50 training steps with one probe over without, CPU s",
            10.0 * plain.median_s * ratio,
            10.0 * plain.median_s,
            1.05,
            ratio,
        )
    ]


def _state(params):
    size = sum(leaf.size for leaf in params.values())
    rng = np.random.default_rng(2)
    momentum, grad = (jnp.asarray(rng.standard_t(3, size), jnp.float32) for _ in range(2))
    exact = np.sign(0.9 * momentum + 0.1 * grad)

    def held(optimizer):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params)))

    def flips(stored):
        seen = stored.decode(stored.encode(momentum, None), grad)
        return float(np.mean(np.sign(0.9 * seen + 0.1 * grad) != exact))

    full = held(lion_k(1e-3, kappas.l1()))
    int8, int4 = low_precision.int8(block=256), low_precision.int4(block=64)
    return [
        _row("bytes of state over bytes of parameters", full, 4 * size, 1.0),
        _row(
            "int8 momentum, bytes a parameter",
            held(lion_k(1e-3, kappas.l1(), mu_dtype=int8)),
            size,
            1.02,
        ),
        _row("int8 momentum, share of flipped signs", flips(int8), 1.0, 0.02),
        _row(
            "int4 momentum, bytes a parameter",
            held(lion_k(1e-3, kappas.l1(), mu_dtype=int4)),
            size,
            0.57,
        ),
        _row("int4 momentum, share of flipped signs (lossy)", flips(int4), 1.0, 0.15),
    ]
