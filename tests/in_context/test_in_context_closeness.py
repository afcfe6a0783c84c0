"""The closeness experiment: its pieces by hand, and a short run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from in_context import closeness, softmax_regression


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def test_prompts_hold_out_their_queries_and_leak_does_not():
    documents = closeness.Documents(6, 3, num_queries=4, scale=2.0)
    prompt = documents.sample(jax.random.key(0), 5)
    assert prompt.A.shape == (5, 6, 3)
    assert prompt.queries.shape == (5, 4, 3)
    np.testing.assert_allclose(prompt.target.sum(1), 1.0, rtol=1e-5)
    for place in range(5):  # one x explains shown and asked rows, up to a constant per document
        shown = np.log(prompt.b[place])
        rows = np.column_stack([prompt.A[place], np.ones(6)])
        x = np.linalg.lstsq(rows, shown, rcond=None)[0][:3]
        expected = softmax(np.asarray(prompt.queries[place]) @ x)
        np.testing.assert_allclose(prompt.target[place], expected, rtol=1e-3, atol=1e-5)
    leak = closeness.Documents(6, 3, leak=True).sample(jax.random.key(0), 5)
    np.testing.assert_array_equal(leak.A, leak.queries)
    np.testing.assert_array_equal(leak.b, leak.target)


def test_step_is_the_gradient_of_softmax_regression_at_zero():
    with jax.enable_x64(True):
        prompt = closeness.Documents(6, 3).sample(jax.random.key(0), 2)
        steps = closeness.gradient_step(prompt, 2.5)
        for A, b, step in zip(prompt.A, prompt.b, steps):
            b = b / jnp.sum(b)
            expected = -2.5 * softmax_regression.gradient(A, jnp.zeros(3), b)
            np.testing.assert_allclose(step, expected, atol=1e-7)


def test_layer_and_report_by_hand():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        prompt = closeness.Documents(6, 3, num_queries=4).sample(jax.random.key(0), 2)
        params = closeness.LayerParams(rng.normal(size=(4, 4)), rng.normal(size=4))
        context, queries = closeness.tokens(prompt)
        answers = closeness.logits(params, context, queries)
        hand = np.zeros((2, 4))
        for i in range(2):
            tokens = np.column_stack([prompt.A[i], 6 * prompt.b[i]])
            for j in range(4):
                asked = np.append(prompt.queries[i, j], 0.0)
                weights = softmax(tokens @ (asked @ params.key_query))
                hand[i, j] = weights @ tokens @ params.value
        np.testing.assert_allclose(answers, hand, rtol=1e-6)
        report = closeness.report(params, prompt, 3.0)
        loss = 0.5 * np.mean([np.sum((softmax(z) - t) ** 2) for z, t in zip(hand, prompt.target)])
        np.testing.assert_allclose(report.layer_loss, loss, rtol=1e-6)


def test_small_constructed_layer_is_the_gradient_step():
    """key_query = eps I and value 1 / eps: the layer's logits are the step's, up to a constant."""
    with jax.enable_x64(True):
        prompt = closeness.Documents(25, 5).sample(jax.random.key(0), 50)
        eps, rate = 1e-6, 20.0
        key_query = jnp.zeros((6, 6)).at[jnp.arange(5), jnp.arange(5)].set(eps)
        value = jnp.zeros(6).at[5].set(rate / (25 * eps))
        report = closeness.report(closeness.LayerParams(key_query, value), prompt, rate)
        assert float(report.sensitivity_cosine) > 1 - 1e-6
        assert float(report.prediction_difference) < 1e-4
        assert float(report.ratio) == pytest.approx(1.0, abs=1e-4)


def test_best_learning_rate_beats_its_neighbours():
    prompt = closeness.Documents(25, 5).sample(jax.random.key(0), 400)
    best = closeness.best_learning_rate(prompt)

    def loss(rate):
        answers = jnp.einsum("bqd,bd->bq", prompt.queries, closeness.gradient_step(prompt, rate))
        return float(closeness.half_squared_error(answers, prompt.target))

    assert loss(best) < min(loss(0.8 * best), loss(1.25 * best))


def test_short_training_comes_close_to_the_step():
    documents = closeness.Documents(25, 5)
    run = jax.jit(lambda key: closeness.train(documents, key=key, num_steps=1500))
    params = run(jax.random.key(0)).params
    prompt = documents.sample(jax.random.key(1), 500)
    report = closeness.report(params, prompt, closeness.best_learning_rate(prompt))
    assert float(report.sensitivity_cosine) > 0.95
    assert float(report.ratio) < 1.05


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match="Documents: scale must be finite and > 0, got 0"):
        closeness.Documents(6, 3, scale=0).sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="num_rows must be an integer >= 1"):
        closeness.Documents(0, 3).sample(jax.random.key(0), 2)
