"""Of Lion-l_p, a transformer of characters trains best at p = 1, a network of digits above it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from experiments.figures import claim
from experiments.figures.lion_lyapunov._run import cross_entropy, digits, mlp, mlp_params
from lion_lyapunov import kappas, lion_k
from shared.plotting import new_figure

POWERS = (1.0, 1.25, 1.5, 1.75, 2.0)
RATES = (0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
CONTEXT, WIDTH = 16, 24
NAMES = ("network", "transformer")


def characters(num):
    """Contexts [num, CONTEXT], the characters that follow, and how many kinds there are.

    The text is what scikit-learn says of its data sets.
    """
    names = ("iris", "wine", "diabetes", "breast_cancer", "linnerud", "digits")
    text = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names)
    kinds, ids = np.unique(list(text), return_inverse=True)
    starts = np.random.default_rng(0).choice(len(ids) - CONTEXT, num, replace=False)
    windows = ids[starts[:, None] + np.arange(CONTEXT + 1)]
    return jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:]), len(kinds)


def transformer_params(seed, num_kinds):
    """One block of one head: a start for `transformer`."""
    rng = np.random.default_rng(seed)
    shapes = {"embed": (num_kinds, WIDTH), "place": (CONTEXT, WIDTH), "out": (WIDTH, num_kinds)}
    shapes |= dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH))
    shapes |= {"up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
    return {
        name: jnp.asarray(
            rng.normal(size=shape) / np.sqrt(WIDTH if name in ("embed", "place") else shape[0]),
            jnp.float32,
        )
        for name, shape in shapes.items()
    }


def transformer(params, inputs):
    """Logits [n, CONTEXT, kinds] of the next character, from a pre-norm block."""

    def norm(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    x = params["embed"][inputs] + params["place"][None]
    y = norm(x)
    scores = (y @ params["query"]) @ (y @ params["key"]).swapaxes(1, 2) / np.sqrt(WIDTH)
    past = np.tril(np.ones((CONTEXT, CONTEXT), bool))[None]
    x = x + jax.nn.softmax(jnp.where(past, scores, -jnp.inf)) @ (y @ params["value"])
    x = x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]
    return norm(x) @ params["out"]


def final_losses(loss, starts, p, steps):
    """Loss [seeds, rates] after `steps` steps of Lion-l_p."""

    # A step of an l_p norm has unit l_q norm; scaled to the size of a sign step per entry.
    def factor(shape):
        return float(np.prod(shape)) ** (1 - 1 / p)

    kappa = kappas.shape_scaled(kappas.lp(p), factor)

    def final(start, rate):
        optimizer = lion_k(0.1 * rate, kappa, b1=0.9, b2=0.95)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jax.grad(loss)(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        return loss(jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0][0])

    run = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))
    return np.asarray(run(starts, jnp.asarray(RATES))).tolist()


def compute(fast):
    """Training loss after a fixed budget for each p, at the best of the learning rates."""
    seeds = 1 if fast else 3
    inputs, labels = digits()
    inputs, labels = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
    contexts, following, num_kinds = characters(128 if fast else 192)

    def network_loss(params):
        return cross_entropy(mlp(params, inputs), labels)

    def transformer_loss(params):
        logits = transformer(params, contexts)
        return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    make = functools.partial(transformer_params, num_kinds=num_kinds)
    budgets = {"network": 30, "transformer": 100 if fast else 150}
    setups = {
        "network": (network_loss, functools.partial(mlp_params, sizes=(64, 32, 10))),
        "transformer": (transformer_loss, make),
    }
    losses = {}
    for name, (loss, start) in setups.items():
        starts = jax.tree.map(lambda *x: jnp.stack(x), *[start(seed) for seed in range(seeds)])
        for p in POWERS:
            losses[f"{name}|{p}"] = final_losses(loss, starts, p, budgets[name])
    best = {name: best_losses(losses, name) for name in NAMES}  # [powers, seeds]
    best_p = {name: POWERS[int(np.argmin(best[name].mean(axis=1)))] for name in NAMES}
    rate = {
        f"{name}|{p}": int(np.argmin(np.mean(losses[f"{name}|{p}"], axis=0)))
        for name in NAMES
        for p in POWERS
    }
    return {
        "data": "digits, full batch, MLP 64-32-10, "
        f"{budgets['network']} steps; {len(contexts)} windows of {CONTEXT} characters of "
        f"scikit-learn's descriptions, one pre-norm block of width {WIDTH}, "
        f"{budgets['transformer']} steps",
        "seeds": f"{seeds} seeds of the start; best of learning rates {RATES} for each",
        "losses": losses,
        "best_p": best_p,
        "claims": [
            claim(
                "best p of the network less that of the transformer",
                best_p["network"] - best_p["transformer"],
                low=0.25,
            ),
            claim(
                "network: least over seeds of loss at p = 1 over loss at p = 1.75",
                (best["network"][0] / best["network"][3]).min(),
                low=1.05,
            ),
            claim(
                "transformer: least over seeds of loss at p = 1.75 over loss at p = 1",
                (best["transformer"][3] / best["transformer"][0]).min(),
                low=1.0 if fast else 1.01,
            ),
            claim(
                "cases whose best rate is the first or the last of the grid",
                sum(i in (0, len(RATES) - 1) for i in rate.values()),
                high=len(rate) if fast else 0,
            ),
        ],
    }


def best_losses(losses, name):
    """Loss [powers, seeds] at each one's best learning rate."""
    return np.array([np.min(losses[f"{name}|{p}"], axis=1) for p in POWERS])


def draw(result):
    """Loss against p, one panel for each architecture."""
    figure, axes = new_figure(1, 2, width=4.2, height=3.2)
    for axis, name in zip(axes[0], NAMES):
        best = best_losses(result["losses"], name)
        axis.plot(POWERS, best.mean(axis=1), "o-", color="C0")
        axis.fill_between(POWERS, best.min(axis=1), best.max(axis=1), alpha=0.2, color="C0")
        axis.set(
            xlabel="p",
            ylabel="training loss",
            title=f"{name}: best p = {result['best_p'][name]:g}, n = {best.shape[1]}, band = range",
        )
    return figure
