"""The p of Lion-l_p matters, far more for one architecture than for another (qualitative)."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import cross_entropy, digits, mlp, mlp_params
from lion_lyapunov import kappas, lion_k
from shared.plotting import new_figure

POWERS = (1.0, 1.25, 1.5, 1.75, 2.0)
RATES = (0.01, 0.03, 0.1)


def attention_params(seed, width=16):
    """One head over the eight rows of an image."""
    rng = np.random.default_rng(seed)
    shapes = {"embed": (8, width), "query": (width, width), "key": (width, width)}
    shapes |= {"value": (width, width), "place": (8, width), "out": (width, 10)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
        for name, shape in shapes.items()
    }


def attention(params, inputs):
    """Logits [n, 10] from images [n, 64] read as eight tokens of eight pixels."""
    tokens = inputs.reshape(-1, 8, 8) @ params["embed"] + params["place"][None]
    scores = (tokens @ params["query"]) @ (tokens @ params["key"]).swapaxes(1, 2)
    mixed = jax.nn.softmax(scores / np.sqrt(tokens.shape[-1])) @ (tokens @ params["value"])
    return jnp.tanh(tokens + mixed).mean(axis=1) @ params["out"]


def compute(fast):
    """Training loss after a fixed budget for each p, at the best of three learning rates."""
    steps, seeds = (40, 1) if fast else (120, 2)
    inputs, labels = digits(200 if fast else 400)
    inputs, labels = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
    setups = {
        "network": (mlp, lambda seed: mlp_params(seed, (64, 32, 10))),
        "attention": (attention, attention_params),
    }
    losses = {}
    for name, (apply, make) in setups.items():
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make(s) for s in range(seeds)])

        def loss(params, apply=apply):
            return cross_entropy(apply(params, inputs), labels)

        for p in POWERS:
            # A step of an l_p norm has unit l_q norm; scaled to the size of a sign step per entry.
            def factor(shape, p=p):
                return float(np.prod(shape)) ** (1 - 1 / p)

            kappa = kappas.shape_scaled(kappas.lp(p), factor)

            def final(start, rate, kappa=kappa, loss=loss):
                optimizer = lion_k(0.1 * rate, kappa, b1=0.9, b2=0.95)

                def step(carry, _):
                    x, state = carry
                    updates, state = optimizer.update(jax.grad(loss)(x), state, x)
                    return (jax.tree.map(jnp.add, x, updates), state), None

                carry = (start, optimizer.init(start))
                return loss(jax.lax.scan(step, carry, length=steps)[0][0])

            run = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))
            losses[f"{name}|{p}"] = np.asarray(run(stack, jnp.asarray(RATES))).tolist()
    best = {key: np.array(value).min(axis=1) for key, value in losses.items()}
    spread = {
        name: np.mean([best[f"{name}|{p}"] for p in POWERS], axis=1)
        for name in ("network", "attention")
    }
    best_p = {name: POWERS[int(np.argmin(value))] for name, value in spread.items()}
    initial = np.log(10)
    return {
        "data": "digits, full batch; MLP 64-32-10 and one attention head of width 16; "
        f"{steps} steps",
        "seeds": f"{seeds} seeds of the start; best of learning rates {RATES} for each",
        "losses": losses,
        "best_p": best_p,
        "claims": [
            claim(
                "distance between the best p of the two architectures",
                abs(best_p["network"] - best_p["attention"]),
                low=0.25,
            ),
            claim(
                "loss after training over log 10, worst p and architecture",
                max(value.max() for value in spread.values()) / initial,
                high=0.9,
            ),
            claim(
                "largest over smallest mean loss between the p, least of both architectures",
                min(value.max() / value.min() for value in spread.values()),
                low=1.05,
            ),
            claim(
                "that factor for the network over that for attention",
                np.divide(*[v.max() / v.min() for v in spread.values()]),
                low=1.2,
            ),
        ],
    }


def draw(result):
    """Loss against p, one panel for each architecture."""
    figure, axes = new_figure(1, 2, width=4.2, height=3.2)
    for axis, name in zip(axes[0], ("network", "attention")):
        best = np.array([np.array(result["losses"][f"{name}|{p}"]).min(axis=1) for p in POWERS])
        axis.plot(POWERS, best.mean(axis=1), "o-", color="C0")
        axis.fill_between(POWERS, best.min(axis=1), best.max(axis=1), alpha=0.2, color="C0")
        axis.set(
            xlabel="p",
            ylabel="training loss",
            yscale="log",
            title=f"{name}: best p = {result['best_p'][name]:g}, n = {best.shape[1]}, band = range",
        )
    return figure
