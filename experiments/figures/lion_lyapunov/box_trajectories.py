"""Lion stops at the bounded optimum: the loss has its kink where the box touches the minimiser."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import descend
from lion_lyapunov import kappas, lion_k
from shared.plotting import new_figure

GOAL = (1.5, 0.0)
DECAYS = (0.3, 0.6, 2 / 3, 1.0, 1.5)


def compute(fast):
    """Lion on f = (x1 - 1.5)^2 + x2^2 for several weight decays."""
    steps = 1500 if fast else 4000
    sweep = np.linspace(0.3, 1.6, 14 if fast else 27)

    def loss(x):
        return jnp.sum((x - jnp.asarray(GOAL)) ** 2)

    def bounded(decay):
        return np.clip(GOAL, -1 / decay, 1 / decay)

    with jax.enable_x64(True):
        start = jnp.asarray([-1.2, 1.9])

        def run(decay):
            rate = lambda t: jnp.minimum(1e-2, 10.0 / (t + 1.0))  # noqa: E731
            optimizer = lion_k(rate, kappas.l1(), weight_decay=decay)
            return descend(optimizer, loss, start, steps, lambda x: x)

        def final(decay):
            optimizer = lion_k(1e-2, kappas.l1(), weight_decay=decay)
            return loss(_last(optimizer, loss, start, steps))

        paths = {f"{decay:.4g}": run(decay)[1].tolist() for decay in DECAYS}
        losses = np.asarray(jax.jit(jax.vmap(final))(jnp.asarray(sweep)))
    ends = [np.abs(np.array(paths[f"{d:.4g}"])[-1] - bounded(d)).max() for d in DECAYS]
    exact = np.array([((bounded(decay) - GOAL) ** 2).sum() for decay in sweep])
    return {
        "data": "f(x) = (x1 - 1.5)^2 + x2^2 from (-1.2, 1.9), learning rate 0.01, float64",
        "seeds": "none: deterministic",
        "paths": paths,
        "decays": list(DECAYS),
        "sweep": sweep.tolist(),
        "losses": losses.tolist(),
        "exact": exact.tolist(),
        "claims": [
            claim("distance of the end to the bounded optimum, worst decay", max(ends), high=0.02),
            claim(
                "final loss minus bounded optimum, worst decay",
                abs(losses - exact).max(),
                high=0.03,
            ),
        ],
    }


def _last(optimizer, loss, start, steps):
    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        return (x + updates, state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0][0]


def draw(result):
    """Trajectories with their boxes, and the final loss against the weight decay."""
    figure, axes = new_figure(1, 2, width=4.6, height=3.6)
    left, right = axes[0]
    for index, (name, path) in enumerate(result["paths"].items()):
        path, color = np.array(path), f"C{index}"
        left.plot(path[:, 0], path[:, 1], color=color, label=f"decay {float(name):.2g}", lw=1.2)
        left.plot(*path[-1], "o", color=color, ms=5)
        edge = 1 / float(name)
        if edge < 2:
            square = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [1, 1]]) * edge
            left.plot(square[:, 0], square[:, 1], color=color, ls=":", lw=1)
    left.plot(*GOAL, "k*", ms=9, label="minimiser of f")
    left.set(xlabel="x1", ylabel="x2", title="Lion ends where f is least in its box (dotted)")
    left.set_xlim(-1.9, 3.6)
    left.legend(fontsize=8, loc="upper right")
    right.plot(result["sweep"], result["exact"], "k-", lw=1, label="min f over the box")
    right.plot(result["sweep"], result["losses"], "o", ms=4, label="Lion, last step")
    right.axvline(2 / 3, color="C7", ls="--", lw=1)
    right.text(0.68, 0.55, "1 / max|x*|", fontsize=8)
    right.set(xlabel="weight decay", ylabel="f at the end", title="The kink: decay = 1 / 1.5")
    right.legend(fontsize=8)
    return figure
