"""Lion-K with an l_p norm keeps every leaf in an l_q ball of radius 1 / decay, whatever p."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend, digits_loss, mlp_params
from lion_lyapunov import kappas, lion_k
from shared.plotting import new_figure

POWERS = (1.2, 1.5, 2.0)
DECAYS = (0.5, 1.0)
RATE = 0.02


def compute(fast):
    """A two-layer network on digits; the dual norm of each leaf at every step."""
    steps = 600 if fast else 1200
    loss = digits_loss(300 if fast else 800)
    params = mlp_params(1, (64, 16, 10), scale=3.0)
    curves, worst, slowest = {}, 0.0, 0.0
    for p in POWERS:
        for decay in DECAYS if not fast else DECAYS[:1]:
            kappa = kappas.lp(p)
            optimizer = lion_k(RATE, kappa, weight_decay=decay)

            gauge = kappa.dual_norm
            assert gauge is not None

            def record(x, decay=decay, gauge=gauge):
                norms = [decay * gauge(w) for w in jax.tree.leaves(x)]
                return {"norms": jnp.stack(norms), "loss": loss(x)}

            _, path = descend(optimizer, loss, params, steps, record)
            curves[f"{p}|{decay}"] = {
                "norms": path["norms"].tolist(),
                "loss": path["loss"].tolist(),
            }
            worst = max(worst, path["norms"][-1].max())
            # A norm above 1 shrinks at least like 1 + (norm_0 - 1) (1 - lr decay)^t.
            start = np.maximum(path["norms"][0] - 1.0, 0.0)
            steps_done = np.arange(steps + 1)[:, None]
            bound = 1 + start[None] * (1 - RATE * decay) ** steps_done
            slowest = max(slowest, (path["norms"] / bound).max())
    return {
        "data": "digits, full batch, MLP 64-16-10, start three times the usual size, lr 0.02",
        "seeds": "one seed (1); no noise",
        "curves": curves,
        "claims": [
            claim("decay |w|_q at the end, worst leaf", worst, high=1.01),
            claim("decay |w|_q over its bound, worst step and leaf", slowest, high=1.0001),
        ],
    }


def draw(result):
    """One panel for each p; one line for each leaf."""
    figure, axes = new_figure(1, len(POWERS), width=3.4, height=3.2)
    names = ("bias 1", "kernel 1", "bias 2", "kernel 2")
    for axis, p in zip(axes[0], POWERS):
        decay = DECAYS[0]
        curve = np.array(result["curves"][f"{p}|{decay}"]["norms"])
        for leaf in range(curve.shape[1]):
            axis.semilogy(curve[:, leaf], label=names[leaf])
        axis.axhline(1.0, color="k", ls="--", lw=1)
        q = p / (p - 1)
        axis.set(
            xlabel="step", title=f"p = {p:g}, constraint |w|_q, q = {q:.3g}", ylim=(1e-2, None)
        )
    axes[0, 0].set_ylabel(f"decay |w|_q   (decay = {DECAYS[0]:g}, n = 1 run)")
    axes[0, -1].legend(fontsize=8)
    return figure
