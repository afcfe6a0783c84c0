"""In the published script on 8 GPUs one read in eight finds the logits that the paper asks for.

The script keeps one table per process, and the sampler deals the examples out anew each epoch. An
example then finds its own outputs of three epochs ago only if the same process had it then; else it
finds older ones, or zeros, which are a uniform target. `saf(published_ranks=R)` does the same on
one device, and its metrics count what was read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import sam_free
from experiments.figures import claim
from shared import plotting

LAG, START, BATCH = 3, 5, 64


def compute(fast: bool) -> dict[str, Any]:
    """Shares of reads by kind, over the epochs in which the term is on."""
    num_examples, num_epochs = (256, 90) if fast else (1024, 90)
    ranks = [1, 2, 4, 8]
    shares = {count: _shares(count, num_examples, num_epochs) for count in ranks}
    exact = [shares[count]["exact"] for count in ranks]
    return {
        "data": f"{num_examples} examples, batch {BATCH}, {num_epochs} epochs, lag {LAG}",
        "seeds": [0],
        "ranks": ranks,
        "shares": {str(count): shares[count] for count in ranks},
        "claims": [
            claim("share of exact reads, one process", exact[0], low=1.0, high=1.0),
            claim("share of exact reads, 8 processes", exact[3], low=0.115, high=0.135),
            claim("share of uniform targets, 8 processes", shares[8]["never"], low=0.25, high=0.31),
            claim("share of exact reads, 4 processes", exact[2], low=0.235, high=0.265),
        ],
    }


def draw(result: dict[str, Any]) -> Figure:
    """Stacked bars, one per number of processes."""
    figure, axes = plotting.new_figure(width=4.6)
    axis = axes[0, 0]
    bottom = np.zeros(len(result["ranks"]))
    names = {"exact": "three epochs old", "stale": "older", "never": "never written: uniform"}
    for (kind, label), color in zip(names.items(), plotting.COLORS):
        heights = [100 * result["shares"][str(count)][kind] for count in result["ranks"]]
        axis.bar(
            [str(count) for count in result["ranks"]],
            heights,
            bottom=bottom,
            label=label,
            color=color,
        )
        bottom += heights
    axis.set_xlabel("processes (GPUs)")
    axis.set_ylabel("reads of past logits (%)")
    axis.set_ylim(0, 100)
    figure.suptitle(f"Published SAF, epochs {START + 1} to 89\n{result['data']}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _shares(ranks: int, num_examples: int, num_epochs: int) -> dict[str, float]:
    objective = sam_free.saf(
        lambda params, model_state, inputs, *, train, key: (inputs @ params, model_state),
        sam_free.cross_entropy,
        num_classes=2,
        lag_epochs=LAG,
        start_epoch=START,
        stale="official",
        published_ranks=ranks,
    )
    params = jnp.eye(2)
    steps = num_examples // BATCH

    def step(table: Any, place: tuple[jax.Array, jax.Array]):
        epoch, index = place
        batch = {"inputs": jnp.ones((BATCH, 2)), "label": jnp.zeros(BATCH, jnp.int32)}
        batch["index"] = index
        _, outputs = objective.loss(params, (), table, batch, epoch, None)
        table = objective.update(
            table,
            params=params,
            model_state=(),
            logits=outputs.logits,
            batch=batch,
            epoch=epoch,
        )
        return table, outputs.metrics

    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(num_examples) for _ in range(num_epochs)])
    index = jnp.asarray(order.reshape(-1, BATCH), jnp.int32)
    epochs = jnp.repeat(jnp.arange(num_epochs, dtype=jnp.int32), steps)
    table = objective.init(params, num_examples)
    _, metrics = jax.jit(lambda t, p: jax.lax.scan(step, t, p))(table, (epochs, index))
    on = np.asarray(epochs) > START
    names = {"exact": "saf_fresh", "stale": "saf_stale", "never": "saf_never"}
    return {kind: float(np.asarray(metrics[name])[on].mean()) for kind, name in names.items()}
