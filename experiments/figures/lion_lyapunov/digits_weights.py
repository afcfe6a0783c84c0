"""Every weight of a network ends inside |w| <= 1 / decay, at the rate (1 - lr decay)^t."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend, digits_loss, mlp_params
from lion_lyapunov import analysis, kappas, lion_k
from shared.plotting import new_figure

RATE, DECAY = 2e-3, 10.0


def compute(fast):
    """A two-layer network on digits, started at five times its usual size."""
    steps = 700 if fast else 1000
    loss = digits_loss(300 if fast else None)
    params = mlp_params(0, scale=5.0)
    optimizer = lion_k(RATE, kappas.l1(), weight_decay=DECAY)

    def record(x):
        return {
            "largest": jnp.max(jnp.stack([jnp.max(jnp.abs(w)) for w in jax.tree.leaves(x)])),
            "distance": analysis.distance(kappas.l1(), x, DECAY),
            "loss": loss(x),
        }

    last, path = descend(optimizer, loss, params, steps, record)
    bound = float(path["distance"][0]) * (1 - RATE * DECAY) ** np.arange(steps + 1)
    weights = [np.concatenate([w.ravel() for w in jax.tree.leaves(x)]) for x in (params, last)]
    ratio = (path["distance"] / np.maximum(bound, 1e-3)).max()
    edges = np.linspace(-0.35, 0.35, 70)  # 1 / decay lies inside a bin
    clipped = [np.histogram(np.clip(w, -0.35, 0.35), edges)[0] for w in weights]
    return {
        "data": "digits, full batch, MLP 64-32-10 of tanh units, float32, lr 0.002, decay 10",
        "seeds": "one seed (0); no noise",
        "largest": (path["largest"] * DECAY).tolist(),
        "distance": path["distance"].tolist(),
        "bound": bound.tolist(),
        "loss": path["loss"].tolist(),
        "edges": edges.tolist(),
        "before": clipped[0].tolist(),
        "after": clipped[1].tolist(),
        "claims": [
            claim("largest |w| times decay at the end", path["largest"][-1] * DECAY, high=1.001),
            claim("distance over (1 - lr decay)^t distance_0, largest", ratio, high=1.0001),
            claim("loss fell to", path["loss"][-1], high=float(path["loss"][0])),
        ],
    }


def draw(result):
    """Histograms before and after, and the approach to the box."""
    figure, axes = new_figure(1, 2, width=4.6, height=3.4)
    left, right = axes[0]
    edges = np.array(result["edges"])
    left.stairs(result["before"], edges, label="start, clipped", color="C7", fill=True)
    left.stairs(result["after"], edges, label="end", color="C0", lw=1.5)
    for side in (-1, 1):
        left.axvline(side / DECAY, color="C1", ls="--", lw=1.2)
    left.set(xlabel="weight", ylabel="number of weights", title="All weights end in the box")
    left.set_yscale("symlog", linthresh=10)
    left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.07, 1.0))
    steps = np.arange(len(result["distance"]))
    right.semilogy(steps, np.maximum(result["distance"], 1e-7), label="distance of decay w to box")
    right.semilogy(steps, np.maximum(result["bound"], 1e-7), "k--", lw=1, label="(1 - lr decay)^t")
    right.semilogy(steps, result["largest"], label="decay max|w|")
    right.set(
        xlabel="step",
        ylabel="distance, size (no unit)",
        title="Phase 1, then the rounding of float32; n = 1 run",
        ylim=(1e-5, None),
    )
    right.legend(fontsize=8)
    return figure
