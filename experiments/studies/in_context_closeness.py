"""A softmax attention layer trained on documents, and one gradient step of softmax regression."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from in_context import closeness
from shared import data, models
from shared.train import Outputs, Study, default_config, steps_per_epoch

Array = jax.Array
PROBE_PROMPTS = 500  # documents of every probe
TUNING_PROMPTS = 2000  # documents that the gradient step's learning rate is chosen on


def get_default() -> ml_collections.ConfigDict:
    """The loop's keys and those of this study."""
    config = default_config()
    config.study = "in_context_closeness"
    config.num_rows = 100  # n, rows of a document
    config.dim = 5  # d, of a row
    config.num_queries = 25  # rows that are asked for
    config.logit_scale = 0.5  # standard deviation of a document's logits
    config.leak = False  # ask for the shown rows: the layer then copies their targets
    config.train_size = 6400  # documents of an "epoch"; every visit draws a new one
    config.eval_size = 2000  # held-out documents
    config.warmup_share = 0.1  # of the steps, linear, before a cosine to 0
    return config


def build(config: Any) -> Study:
    """Layer, documents, loss, Adam and the probe that compares the layer with the step."""
    documents = closeness.Documents(
        config.num_rows,
        config.dim,
        num_queries=config.num_queries,
        scale=config.logit_scale,
        leak=config.leak,
    )
    steps = steps_per_epoch(
        config.train_size, config.batch_size, order=config.order, num_shards=config.order_shards
    )
    num_steps = config.num_steps or config.num_epochs * steps
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, round(config.warmup_share * num_steps), num_steps
    )
    return Study(
        model=make_model(config),
        train_data=source(documents, config.train_size, fresh=True, seed=config.seed),
        objective=SquaredError(make_model(config).apply),
        optimizer=optax.adam(schedule),
        eval_data={"held_out": source(documents, config.eval_size, fresh=False, seed=1)},
        eval_metrics=example_metrics,
        probes={"closeness": probe(documents)},
    )


def source(documents: closeness.Documents, size: int, *, fresh: bool, seed: int) -> Any:
    """Documents made on the device: new at every visit, or a fixed set by number."""
    base = jax.random.key_data(jax.random.fold_in(jax.random.key(2023), seed))

    def generate(visit_key: Array, index: Array) -> dict[str, Array]:
        own = visit_key if fresh else jax.random.fold_in(jax.random.wrap_key_data(base), index)
        prompt = documents.sample(own, 1)
        context, queries = closeness.tokens(prompt, leak=documents.leak)
        inputs = jnp.concatenate([context, queries], axis=1)[0]
        return {"inputs": inputs, "targets": prompt.target[0]}

    return data.Generated(generate, num_examples=size)


def make_model(config: Any) -> models.Model:
    """The layer of `in_context.closeness` on [batch, n + m, d + 1] tokens."""

    def init(key: Array, inputs: Array) -> tuple[Any, tuple]:
        return closeness.init(key, inputs.shape[-1] - 1), ()

    def apply(
        params: Any, model_state: Any, inputs: Array, *, train: bool, key: Any
    ) -> tuple[Array, Any]:
        del train, key  # nothing in the layer is random
        context, queries = inputs[:, : config.num_rows], inputs[:, config.num_rows :]
        return closeness.logits(params, context, queries), model_state

    return models.Model(init, apply)


class SquaredError:
    """0.5 ||softmax(logits) - target||^2 as an objective without state."""

    def __init__(self, apply_fn: Any):
        self.apply = apply_fn

    def init(self, params: Any, num_examples: int, *, model_state: Any = ()) -> tuple:
        """Nothing to carry."""
        del params, num_examples, model_state
        return ()

    def loss(
        self, params: Any, model_state: Any, state: Any, batch: Any, epoch: Array, key: Array
    ) -> tuple[Array, Outputs]:
        """The mean loss of this device's prompts."""
        del state, epoch
        logits, model_state = self.apply(params, model_state, batch["inputs"], train=True, key=key)
        value = closeness.half_squared_error(logits, batch["targets"])
        return value, Outputs(logits, model_state, {"loss": value})

    def update(
        self,
        state: Any,
        *,
        params: Any,
        model_state: Any,
        logits: Any,
        batch: Any,
        epoch: Array,
    ) -> Any:
        """Nothing to change."""
        del params, model_state, logits, batch, epoch
        return state


def example_metrics(logits: Array, batch: Mapping[str, Array]) -> Mapping[str, Array]:
    """The loss of every document."""
    apart = jax.nn.softmax(logits) - batch["targets"]
    return {"loss": 0.5 * jnp.sum(apart**2, axis=-1)}


def probe(documents: closeness.Documents) -> Any:
    """`closeness.report` on fixed documents, with the step tuned on others."""
    key = jax.random.key(7)
    tuning = documents.sample(jax.random.fold_in(key, 0), TUNING_PROMPTS)
    learning_rate = float(closeness.best_learning_rate(tuning))
    prompt = jax.device_get(documents.sample(jax.random.fold_in(key, 1), PROBE_PROMPTS))

    def compare(state: Any, batch: Any) -> dict[str, Array]:
        del batch
        found = closeness.report(state.params, prompt, learning_rate, leak=documents.leak)
        return found._asdict()

    return compare
