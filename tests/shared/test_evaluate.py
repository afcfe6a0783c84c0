import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.data import Arrays
from shared.devices import make_devices
from shared.evaluate import Evaluator, evaluate, example_metrics
from shared.models import Model

KEY = np.zeros(2, np.uint32)


def identity() -> Model:
    """Logits are the inputs, so that every metric is known by hand."""
    return Model(
        lambda key, inputs: ((), ()),
        lambda params, state, inputs, *, train, key: (inputs + params, state),
    )


def classes(count: int) -> Arrays:
    rng = np.random.default_rng(count)
    return Arrays(
        {
            "inputs": rng.standard_normal((count, 5)).astype(np.float32),
            "label": rng.integers(0, 5, count).astype(np.int32),
        }
    )


def by_hand(source: Arrays) -> dict[str, float]:
    logits = source.arrays["inputs"].astype(np.float64)
    labels = source.arrays["label"]
    chosen = logits[np.arange(len(labels)), labels]
    loss = np.log(np.exp(logits).sum(-1)) - chosen
    return {"loss": loss.mean(), "accuracy": (logits.argmax(-1) == labels).mean()}


@pytest.mark.parametrize(
    ("parallelism", "count", "examples"),
    [("shard_map", 1, 37), ("shard_map", 4, 37), ("pmap", 4, 37), ("shard_map", 4, 3)],
)
def test_means_are_over_every_example_once(parallelism, count, examples):
    source = classes(examples)
    devices = make_devices(parallelism, count)
    got = evaluate(identity(), jnp.zeros(()), (), source, devices=devices, batch_size=8)
    assert got == pytest.approx(by_hand(source), rel=1e-6)


def test_rows_that_fill_the_last_batch_count_nothing_even_when_nan():
    def metrics(logits, batch):
        # 0 / 0 in the rows that fill up: they repeat the last example, which is masked there.
        return {"index": batch["index"] + 0.0, "bad": jnp.where(batch["mask"], 1.0, jnp.nan)}

    devices = make_devices("shard_map", 2)
    got = evaluate(
        identity(), jnp.zeros(()), (), classes(7), devices=devices, batch_size=4, metrics=metrics
    )
    assert got == {"index": 3.0, "bad": 1.0}


def test_all_batches_run_one_compiled_function():
    evaluator = Evaluator(identity(), classes(37), make_devices("shard_map", 4), 8)
    for _ in range(2):
        evaluator(jnp.zeros(()), (), KEY)
    assert evaluator._step._cache_size() == 1


def test_language_and_regression_metrics_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 4)).astype(np.float32)
    tokens = rng.integers(0, 4, (2, 4))
    got = example_metrics(jnp.asarray(logits), {"tokens": jnp.asarray(tokens)})
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = [-np.mean([log_q[b, t, tokens[b, t + 1]] for t in range(3)]) for b in range(2)]
    np.testing.assert_allclose(got["loss"], want, rtol=1e-5)
    got = example_metrics(jnp.ones((2, 3)), {"targets": jnp.zeros((2, 3))})
    np.testing.assert_allclose(got["loss"], [1.5, 1.5])


def test_refuses_what_it_cannot_measure():
    devices = make_devices("shard_map", 4)
    with pytest.raises(
        ValueError, match="eval_batch_size = 6 must be a positive multiple of the 4"
    ):
        Evaluator(identity(), classes(8), devices, 6)
    with pytest.raises(ValueError, match="no metrics are known for a batch of"):
        example_metrics(jnp.zeros((2, 3)), {"index": jnp.zeros(2)})
    with pytest.raises(ValueError, match="differ in shape"):
        example_metrics(jnp.zeros((2, 3)), {"targets": jnp.zeros((2, 1))})

    def scalar(logits, batch):
        return {"loss": jnp.mean(logits)}

    evaluator = Evaluator(identity(), classes(8), devices, 8, scalar)
    with pytest.raises(ValueError, match=r"'loss' must have one value per example"):
        evaluator(jnp.zeros(()), (), KEY)
    assert jax.process_count() == 1
