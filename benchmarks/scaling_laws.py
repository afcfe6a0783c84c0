"""Fits, bootstraps, areas and the schedule search, in CPU seconds of one run, beside SciPy.

The Chinchilla rows use the 240 published points where ../shared/data has them, otherwise 240
simulated ones. SciPy runs a part of the starts and resamples and is scaled up to all of them; so is
the first stage of the published procedure for Multi-Power, and with `fast` its second.
"""

import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import scaling_laws
from benchmarks import _multi_power_published
from scaling_laws import curves, laws

DATA = Path(__file__).parents[2] / "shared" / "data" / "scaling_laws"
PUBLISHED = list(
    itertools.product(  # e, a, b, alpha, beta of Hoffmann et al. 2022, Section D.2
        np.linspace(-1, 1, 5), np.arange(0, 30, 5), np.arange(0, 30, 5),
        np.linspace(0, 2, 5), np.linspace(0, 2, 5),
    )
)  # fmt: skip


def run(fast: bool) -> list[dict]:
    """The rows; `fast` runs fewer of SciPy's starts."""
    data = _points()
    rows = _starts(data, 20 if fast else 100)
    rows.append(_bootstraps(data, 40 if fast else 200))
    rows.append(_multi_power(*((9, 4) if fast else (27, 200))))
    rows += _seconds()
    return rows


def _cpu(function, repeats=1):
    """(CPU seconds of one call after a first one, what it returns)."""
    function()
    start = time.process_time()
    for _ in range(repeats):
        result = jax.block_until_ready(function())
    return (time.process_time() - start) / repeats, result


def _row(name, ours, peer, bar, needed, **more):
    ratio = peer / ours
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar,
            "holds": bool(ratio >= needed and more.get("also", True))} | more  # fmt: skip


def _points():
    path = DATA / "chinchilla_245.csv"
    if path.exists():
        table = np.genfromtxt(path, delimiter=",", names=True)
        keep = table["loss"] < np.sort(table["loss"])[-5]
        return {k: table[k][keep] for k in ("params", "flops", "loss")}
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 240))
    tokens = np.exp(rng.uniform(np.log(1e9), np.log(1e12), 240))
    loss = 1.8172 + 482 * size**-0.3478 + 2085 * tokens**-0.3658
    noisy = loss * np.exp(5e-3 * rng.standard_t(3, 240))
    return {"params": size, "flops": 6 * size * tokens, "loss": noisy}


def _objective(data, weights=None):
    """The published objective, log-sum-exp inside Huber, and its gradient."""
    n, d = np.log(data["params"]), np.log(data["flops"] / (6 * data["params"]))
    target = np.log(data["loss"])
    weights = np.ones(len(n)) if weights is None else weights

    def value(x):
        return value_and_slope(x)[0]

    def value_and_slope(x):
        e, a, b, alpha, beta = x
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
        top = terms.max(axis=0)
        parts = np.exp(terms - top)
        total = parts.sum(axis=0)
        r = np.log(total) + top - target
        size = np.abs(r)
        loss = np.where(size <= 1e-3, 0.5 * r * r, 1e-3 * (size - 5e-4))
        psi = weights * np.clip(r, -1e-3, 1e-3)
        share = parts / total
        slope = np.array([psi @ share[0], psi @ share[1], psi @ share[2],
                          -psi @ (share[1] * n), -psi @ (share[2] * d)])  # fmt: skip
        return np.sum(weights * loss), slope

    return value, value_and_slope


def _starts(data, scipy_starts):
    starts = np.array(PUBLISHED, dtype=float)
    natural = np.column_stack(
        [np.exp(starts[:, 0]), np.exp(starts[:, 1]), np.exp(starts[:, 2]), starts[:, 3:]]
    )

    def ours():
        return scaling_laws.fit(laws.Chinchilla(), data, starts=natural, max_iterations=200)

    seconds, result = _cpu(ours)
    value, _ = _objective(data)
    chosen = np.random.default_rng(0).permutation(len(starts))[:scipy_starts]
    begin = time.process_time()
    found = [optimize.minimize(value, starts[i], method="L-BFGS-B").fun for i in chosen]
    peer = (time.process_time() - begin) * len(starts) / scipy_starts
    theirs = np.mean(np.array(found) <= 1.001 * result.objective)
    hits = result.diagnostics.hit_rate
    return [
        _row(
            "4,500 published starts, against SciPy's L-BFGS-B as published",
            seconds, peer, ">= 5 with 60 % of starts at the optimum", 5.0, also=hits >= 0.6,
            hit_rate=hits, peer_hit_rate=float(theirs), peer_starts_run=scipy_starts,
        )
    ]  # fmt: skip


def _bootstraps(data, scipy_samples):
    result = scaling_laws.fit(laws.Chinchilla(), data)
    seconds, drawn = _cpu(
        lambda: scaling_laws.bootstrap(result, 4000, key=jax.random.key(0)), repeats=2
    )
    p = result.params
    x = np.array([np.log(p["E"]), np.log(p["A"]), np.log(p["B"]), p["alpha"], p["beta"]])
    rng = np.random.default_rng(0)
    points = len(data["loss"])
    begin = time.process_time()
    for _ in range(scipy_samples):
        counts = np.bincount(rng.integers(points, size=points), minlength=points).astype(float)
        _, slope = _objective(data, counts)
        optimize.minimize(slope, x, jac=True, method="BFGS")
    peer = (time.process_time() - begin) * 4000 / scipy_samples
    return _row(
        "4,000 bootstraps, against SciPy's BFGS with analytic gradient, warm start",
        seconds, peer, ">= 3", 3.0, converged=drawn.converged, peer_samples_run=scipy_samples,
    )  # fmt: skip


def _multi_power(scipy_starts, steps):
    """Against the published procedure, which stops before it converges (`peer_objective`)."""
    data = _curves()
    seconds, result = _cpu(lambda: scaling_laws.fit(laws.MultiPower(), data))
    peer = _multi_power_published.run(data, starts_run=scipy_starts, steps=steps)
    # A shorter run of the second stage is scaled up to the 200 steps that it may take.
    second = peer.second_stage_s * (_multi_power_published.STEPS / steps)
    return _row(
        "Multi-Power to its optimum, against the published procedure to its end",
        seconds, peer.first_stage_s + second, ">= 5", 5.0, objective=result.objective,
        peer_objective=peer.objective, peer_stages=[peer.first_stage_s, second],
        peer_starts_run=scipy_starts, peer_steps_run=peer.steps,
    )  # fmt: skip


def _curves():
    """Three curves of 24,000 steps like the published ones, real where they are at hand."""
    common = {"peak": 3e-4, "warmup": 2160}
    plans = {
        "cosine_24000": curves.cosine(24000, end=3e-5, **common),
        "constant_24000": curves.constant(24000, **common),
        "wsdcon_9": curves.two_stage(16000, switch=8000, end=9e-5, **common),
    }
    folder = DATA / "mpl_curves" / "25M"
    if folder.exists():
        return [curves.read(folder / f"{n}.csv", schedule=r) for n, r in plans.items()]
    truth = {"L0": 2.99, "A": 0.56, "alpha": 0.49, "B": 750.0, "C": 0.38, "beta": 0.11,
             "gamma": 0.9}  # fmt: skip
    rng = np.random.default_rng(0)
    made = []
    for name, rates in plans.items():
        at = np.arange(2160, len(rates), 128)
        from scaling_laws._predict import predict

        loss = predict(laws.MultiPower(), truth, rates, at)
        shake = np.exp(2e-4 * rng.standard_normal(len(at)))
        made.append(curves.Curve(at, loss * shake, rates, name=name))
    return made


def _seconds():
    """Rows whose bar is in seconds: the peer is the bar."""
    result = scaling_laws.fit(laws.LRAnnealing(), _curves())
    relaxed = scaling_laws.fit(laws.PowerRelaxation(), _curves())
    search, _ = _cpu(lambda: scaling_laws.optimize_schedule(result, steps=24000, warmup_steps=2160))
    limited, _ = _cpu(
        lambda: scaling_laws.optimize_schedule(
            relaxed, steps=24000, warmup_steps=2160, floor=3e-5, max_slope=1e-7
        )
    )
    with jax.enable_x64(True):
        rates = jnp.asarray(curves.cosine(1_000_000, peak=3e-4, end=3e-5))
        mixed = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1_000_000)))

        def objective(rates, decay):
            first, second = scaling_laws.learning_rate_areas(rates, decay=decay)
            return mixed[0] @ first + mixed[1] @ second

        slope = jax.jit(jax.grad(objective, argnums=(0, 1)))
        areas, _ = _cpu(lambda: slope(rates, jnp.asarray(0.999)), repeats=5)
    return [
        _row("schedule search, annealing law, 24,000 steps", search, 5.0, "5 s", 1.0),
        _row("schedule search, slope and floor, 24,000 steps", limited, 5.0, "5 s", 1.0),
        _row("areas with gradient, 1,000,000 steps", areas, 0.1, "0.1 s", 1.0),
    ]
