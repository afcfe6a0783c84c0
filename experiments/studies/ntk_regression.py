"""Regression by a wide network in the NTK parameterization, beside its kernel and linearization."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

import ntk
from shared import data, models
from shared.train import Outputs, Study, default_config


class SquaredLoss(NamedTuple):
    """1/2 mean((f - y)^2), the loss of `ntk.predict.gradient_descent_mse`."""

    apply: Any

    def init(self, params: Any, num_examples: int, *, model_state: Any = ()) -> tuple:
        """No state."""
        del params, num_examples, model_state
        return ()

    def loss(self, params, model_state, state, batch, epoch, key) -> tuple[jax.Array, Outputs]:
        """The loss on a batch."""
        del state, epoch
        outputs, model_state = self.apply(params, model_state, batch["inputs"], train=True, key=key)
        loss = 0.5 * jnp.mean((outputs - batch["targets"]) ** 2)
        return loss, Outputs(outputs, model_state, {})

    def update(self, state, *, params, model_state, logits, batch, epoch) -> tuple:
        """No state."""
        del params, model_state, logits, batch, epoch
        return state


def get_default() -> ml_collections.ConfigDict:
    """The loop's keys and those of this study."""
    config = default_config()
    config.study = "ntk_regression"
    config.num_examples = 64  # of the training set; every batch is all of it
    config.test_examples = 32
    config.input_size = 8
    config.width = 512  # hidden units
    config.depth = 2  # hidden layers
    config.activation = "tanh"
    config.init_scale = 1.5  # W_std
    config.bias_scale = 0.1  # b_std
    config.output_scale = 1.0  # of f - f at the start; large: lazy, small: rich; 0: f itself
    return config


def build(config: Any) -> Study:
    """Data, network, loss and the probe of kernel and linearization.

    Raises:
      ValueError: `config.output_scale` is negative.
    """
    if config.output_scale < 0:
        raise ValueError(f"output_scale must be >= 0, got {config.output_scale!r}.")
    key = jax.random.key(config.seed)
    examples = config.num_examples + config.test_examples
    source = data.teacher_student(
        lambda inputs: jnp.sign(inputs[:1] * inputs[1:2]),
        num_examples=examples,
        input_size=config.input_size,
        key=jax.random.fold_in(key, 1),
    ).materialize(jax.random.fold_in(key, 2))
    arrays = source.arrays
    train = data.Arrays({k: v[: config.num_examples] for k, v in arrays.items()}, name="train")
    test = data.Arrays({k: v[config.num_examples :] for k, v in arrays.items()}, name="test")
    network = models.mlp(
        num_outputs=1,
        width=config.width,
        depth=config.depth,
        activation=config.activation,
        parameterization="ntk",
        init_scale=config.init_scale,
        bias_scale=config.bias_scale,
    )
    inputs = jnp.asarray(train.arrays["inputs"])
    # The start is the study's own, so that the probe knows it, in a resumed run too.
    first, model_state = network.init(jax.random.fold_in(key, 3), inputs[:1])
    scale = config.output_scale

    def init(key: Any, inputs: Any) -> tuple[Any, Any]:
        del key, inputs
        return jax.tree.map(jnp.array, first), model_state

    def apply(params: Any, model_state: Any, inputs: Any, *, train: bool, key: Any) -> Any:
        out, model_state = network.apply(params, model_state, inputs, train=train, key=key)
        if scale:
            start, _ = network.apply(first, model_state, inputs, train=train, key=key)
            out = scale * (out - start)
        return out, model_state

    rate = config.learning_rate / (scale**2 or 1.0)
    return Study(
        model=models.Model(init, apply),
        train_data=train,
        objective=SquaredLoss(apply),
        optimizer=optax.sgd(rate),
        eval_data={"test": test},
        probes={"ntk": make_probe(apply, first, model_state, train, test, rate)},
    )


def make_probe(apply: Any, first: Any, model_state: Any, train: Any, test: Any, rate: float) -> Any:
    """Kernel drift and alignment, and the distance of test outputs from the linear model's."""
    x, y = (jnp.asarray(train.arrays[k]) for k in ("inputs", "targets"))
    x_test = jnp.asarray(test.arrays["inputs"])

    def f(params: Any, inputs: Any) -> jax.Array:
        return apply(params, model_state, inputs, train=False, key=None)[0]

    kernel_fn = ntk.empirical_ntk_fn(f)
    state = ntk.predict.fit(kernel_fn(x, None, first), y)
    cross = kernel_fn(x_test, x, first)
    start, start_test = f(first, x), f(first, x_test)
    measure = ntk.dynamics.probe(f, x, first, targets=y)

    def probe(train_state: Any, batch: Any) -> dict[str, jax.Array]:
        found = dict(measure(train_state, batch))
        time = train_state.step.astype(x.dtype)
        linear = ntk.predict.predict(state, time, start, start_test, cross, learning_rate=rate)[1]
        found["gap"] = jnp.sqrt(jnp.mean((f(train_state.params, x_test) - linear) ** 2))
        return found

    return probe
