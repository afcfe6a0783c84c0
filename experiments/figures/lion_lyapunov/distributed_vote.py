"""One bit a parameter: within 5 % of the loss of full gradients, workers send 1/32 as much."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import logistic
from lion_lyapunov import kappas, scale_by_lion_k
from shared.plotting import new_figure

WORKERS = (4, 8, 16, 32)
RATE, DECAY, BATCH = 0.01, 0.05, 4


def compute(fast):
    """Simulated workers, each with a momentum of its own and batches of four examples."""
    steps, seeds = (150, 3) if fast else (600, 5)
    rows = logistic(2000, 20, 3)

    def loss(x, rows):
        return jnp.mean(jnp.logaddexp(0.0, -rows @ x))

    inner = scale_by_lion_k(kappas.l1(), b1=0.9, b2=0.99)
    data = jnp.asarray(rows, jnp.float32)

    def train(method, workers, key):
        def step(carry, key):
            x, states = carry
            index = jax.random.randint(key, (workers, BATCH), 0, len(rows))
            grads = jax.vmap(lambda i: jax.grad(loss)(x, data[i]))(index)
            if method == "full gradients":
                grads = jnp.broadcast_to(grads.mean(axis=0), grads.shape)
            signs, states = jax.vmap(inner.update)(grads, states)
            mean = jnp.mean(jnp.asarray(signs), axis=0)
            agreed = jnp.sign(mean) if method == "majority vote" else mean
            x = x - RATE * (agreed + DECAY * x)
            return (x, states), loss(x, data)

        x = jnp.zeros(20)
        states = jax.vmap(inner.init)(jnp.zeros((workers, 20)))
        return jax.lax.scan(step, (x, states), jax.random.split(key, steps))[1]

    curves = {}
    for method in ("full gradients", "average of signs", "majority vote"):
        for workers in WORKERS:
            keys = jax.random.split(jax.random.key(0), seeds)
            run = jax.jit(jax.vmap(lambda key, m=method, w=workers: train(m, w, key)))
            curves[f"{method}|{workers}"] = np.asarray(run(keys)).tolist()
    final = {name: np.array(curve)[:, -50:].mean(axis=1) for name, curve in curves.items()}
    vote, full = final["majority vote|32"], final["full gradients|32"]
    return {
        "data": "logistic regression, 2000 x 20 (seed 3); 4 examples a worker a step; workers "
        "simulated by vmap, float32",
        "seeds": f"{seeds} seeds of the batches",
        "curves": curves,
        "bits": {"full gradients": 32, "average of signs": 8, "majority vote": 1},
        "claims": [
            claim(
                "loss of the vote over full gradients, 32 workers",
                vote.mean() / full.mean(),
                high=1.05,
            ),
            claim(
                "loss of the vote: 32 workers over 4",
                vote.mean() / final["majority vote|4"].mean(),
                high=1.0,
            ),
        ],
    }


def draw(result):
    """Loss against bits sent, and the end against the number of workers."""
    figure, axes = new_figure(1, 2, width=4.6, height=3.4)
    left, right = axes[0]
    for color, (method, bits) in enumerate(result["bits"].items()):
        curve = np.array(result["curves"][f"{method}|32"])
        sent = (1 + np.arange(curve.shape[1])) * bits * 20 / 8000
        left.plot(sent, curve.mean(axis=0), color=f"C{color}", label=f"{method}, {bits} bit")
        left.fill_between(sent, curve.min(axis=0), curve.max(axis=0), alpha=0.2, color=f"C{color}")
        ends = np.array(
            [np.array(result["curves"][f"{method}|{w}"])[:, -50:].mean(axis=1) for w in WORKERS]
        )
        right.errorbar(
            WORKERS,
            ends.mean(axis=1),
            yerr=[ends.mean(1) - ends.min(1), ends.max(1) - ends.mean(1)],
            color=f"C{color}",
            marker="o",
            capsize=3,
            label=method,
        )
    left.set(xlabel="kilobytes sent by a worker", ylabel="loss", xscale="log", title="32 workers")
    left.legend(fontsize=8)
    right.set(
        xlabel="workers",
        ylabel="loss, mean of the last 50 steps",
        xscale="log",
        title=f"n = {curve.shape[0]} seeds, bars = range",
    )
    right.minorticks_off()
    right.set_xticks(WORKERS, [str(w) for w in WORKERS])
    right.legend(fontsize=8)
    return figure
