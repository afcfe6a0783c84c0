"""Muon keeps |X|_op <= 1 / decay with an exact or certified polar factor, and not with raw NS5."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend
from lion_lyapunov import analysis, kappas, lion_k
from shared.plotting import new_figure

DECAY = 1.0
SHAPE = (16, 12)


def compute(fast):
    """A matrix quadratic whose minimiser has singular values on both sides of the bound."""
    steps = 1200 if fast else 3000
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(SHAPE[0], SHAPE[1])))[0]
    v = np.linalg.qr(rng.normal(size=(SHAPE[1], SHAPE[1])))[0]
    spectrum = np.linspace(0.2, 3.0, SHAPE[1])
    goal = u @ np.diag(spectrum) @ v.T
    best = u @ np.diag(np.minimum(spectrum, 1 / DECAY)) @ v.T

    def loss(x):
        return 0.5 * jnp.sum((x - jnp.asarray(goal)) ** 2)

    def schedule(t):
        return jnp.minimum(0.02, 8.0 / (t + 1.0))

    optimizers = {
        "polar (converged)": lion_k(schedule, kappas.nuclear(), weight_decay=DECAY),
        "Newton-Schulz, certified": lion_k(
            schedule, kappas.nuclear("newton_schulz"), weight_decay=DECAY
        ),
        "optax.contrib.muon (NS5)": optax.contrib.muon(schedule, weight_decay=DECAY),
    }
    exact = kappas.nuclear("svd")

    def record(x):
        grads = jax.grad(loss)(x)
        inside = exact.project(DECAY * x) / DECAY
        return {
            "largest": DECAY * jnp.linalg.norm(x, ord=2),
            "gap": analysis.fenchel_gap(exact, inside, grads, DECAY),
            "loss": loss(x),
        }

    curves = {}
    with jax.enable_x64(True):
        start = jnp.asarray(0.1 * rng.normal(size=SHAPE))
        for name, optimizer in optimizers.items():
            last, path = descend(optimizer, loss, start, steps, record)
            curves[name] = {key: value.tolist() for key, value in path.items()}
            curves[name]["error"] = float(np.abs(last - best).max())
    polar, certified, raw = curves.values()
    return {
        "data": "f(X) = |X - G|_F^2 / 2, G 16 x 12 with singular values 0.2 to 3, decay 1, float64",
        "seeds": "one problem (seed 0); no noise",
        "curves": curves,
        "claims": [
            claim("largest decay |X|_op, polar", max(polar["largest"]), high=1 + 1e-9),
            claim("largest decay |X|_op, certified", max(certified["largest"]), high=1 + 1e-9),
            claim(
                "largest decay |X|_op, optax's five steps", max(raw["largest"]), low=1.03, high=1.21
            ),
            claim(
                "KKT gap at the end over the first, polar",
                polar["gap"][-1] / polar["gap"][0],
                high=0.01,
            ),
            claim(
                "distance to the optimum in the ball, polar, largest entry",
                polar["error"],
                high=0.02,
            ),
        ],
    }


def draw(result):
    """The largest singular value and the KKT residual at every step."""
    figure, axes = new_figure(1, 2, width=4.6, height=3.4)
    left, right = axes[0]
    for name, curve in result["curves"].items():
        left.plot(curve["largest"], label=name, lw=1.2)
        right.semilogy(np.maximum(curve["gap"], 1e-8), label=name, lw=1.0)
    left.axhline(1.0, color="k", ls="--", lw=1)
    left.set(xlabel="step", ylabel="decay |X|_op", title="Bound 1 / decay (dashed), n = 1 run")
    left.legend(fontsize=8, loc="lower right")
    right.set(
        xlabel="step",
        ylabel="KKT residual G(X)",
        title="Fenchel-Young gap at the nearest feasible X",
    )
    return figure
