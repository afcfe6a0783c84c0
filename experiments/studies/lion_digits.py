"""Digits by Lion-K with any kappa of one name, its Lyapunov function and constraint probed."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import sam_free
from lion_lyapunov import analysis, kappas, lion_k, muon_kappa
from shared import data, models
from shared.train import Study, default_config, steps_per_epoch

KAPPAS = {
    "l1": lambda scale: kappas.l1(),
    "lp": kappas.lp,
    "huber": kappas.huber,
    "log_cosh": kappas.log_cosh,
    "top_k": lambda scale: kappas.top_k(int(scale)),
    "muon": lambda scale: muon_kappa("newton_schulz"),
    "muon_exact": lambda scale: muon_kappa("polar"),
}


def get_default() -> ml_collections.ConfigDict:
    """The loop's keys and those of this study."""
    config = default_config()
    config.study = "lion_digits"
    config.kappa = "l1"  # one of KAPPAS
    config.kappa_scale = 1.5  # p of lp, e of huber, beta of log_cosh, k of top_k
    config.width = 64  # hidden units
    config.depth = 1  # hidden layers
    config.init_scale = 1.0  # factor on the usual start
    config.b1 = 0.9
    config.b2 = 0.99
    config.weight_decay = 1.0  # the constraint is a dual ball of radius 1 / weight_decay
    config.schedule = "constant"  # or "cosine", to 0
    return config


def build(config: Any) -> Study:
    """Data, network, optimizer and probe of a run.

    Raises:
      ValueError: `config.kappa` or `config.schedule` is unknown.
    """
    if config.kappa not in KAPPAS:
        raise ValueError(f"kappa must be one of {', '.join(KAPPAS)}, got {config.kappa!r}.")
    if config.schedule not in ("constant", "cosine"):
        raise ValueError(f'schedule must be "constant" or "cosine", got {config.schedule!r}.')
    train, test = data.digits()
    steps = steps_per_epoch(
        train.num_examples,
        config.batch_size,
        order=config.order,
        num_shards=config.order_shards,
    )
    num_steps = config.num_steps or config.num_epochs * steps
    network = models.mlp(num_outputs=10, width=config.width, depth=config.depth)

    def init(key, inputs):
        params, model_state = network.init(key, inputs)
        return jax.tree.map(lambda w: config.init_scale * w, params), model_state

    kappa = KAPPAS[config.kappa](config.kappa_scale)
    rate = (
        optax.cosine_decay_schedule(config.learning_rate, num_steps)
        if config.schedule == "cosine"
        else config.learning_rate
    )
    settings = {"b1": config.b1, "b2": config.b2, "weight_decay": config.weight_decay}
    everything = train.batch(range(train.num_examples))

    def loss_fn(params, model_state):
        # Over the whole training set: a Lyapunov function of a mini-batch means little.
        logits, _ = network.apply(
            params, model_state, jnp.asarray(everything["image"]), train=False, key=None
        )
        labels = jnp.asarray(everything["label"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    run_probe = analysis.probe(kappa, loss_fn, learning_rate=rate, **settings)

    def probe(state, batch):
        del batch
        return run_probe(state, state.model_state)

    return Study(
        model=models.Model(init, network.apply),
        train_data=train,
        objective=sam_free.plain(network.apply, sam_free.label_smoothing(0.0)),
        optimizer=lion_k(rate, kappa, **settings),
        eval_data={"test": test},
        probes={"lion": probe},
    )
