"""Predictors and tasks against NumPy loops and their own optimality."""

import jax
import numpy as np
import pytest

from in_context import predictors, tasks


def draw(seed=0, size=4, n=9, d=3, **options):
    task = tasks.LinearRegression(n, d, dtype="float64", **options)
    return task.sample(jax.random.key(seed), size)


def test_ridge_bayes_and_least_squares():
    with jax.enable_x64(True):
        prior = np.array([[1.0, 0.3, 0], [0.3, 2.0, 0], [0, 0, 0.5]])
        prompt = draw(noise=0.4, prior=prior)
        for place in range(4):
            x, y, q = (np.asarray(part[place]) for part in prompt[:3])
            fitted = np.linalg.solve(x.T @ x + 0.7 * np.eye(3), x.T @ y)
            np.testing.assert_allclose(predictors.ridge(prompt, 0.7)[place], fitted @ q, rtol=1e-10)
            posterior = np.linalg.solve(x.T @ x / 0.16 + np.linalg.inv(prior), x.T @ y / 0.16)
            bayes = predictors.bayes(prompt, noise=0.4, prior=prior)[place]
            np.testing.assert_allclose(bayes, posterior @ q, rtol=1e-9)
            fitted = np.linalg.lstsq(x, y, rcond=None)[0]
            np.testing.assert_allclose(
                predictors.least_squares(prompt)[place], fitted @ q, rtol=1e-9
            )
        exact = draw()  # no noise, n >= d: Bayes knows
        np.testing.assert_allclose(predictors.bayes(exact, noise=0.0), exact.target, rtol=1e-7)


def test_bayes_loss_agrees_with_residuals():
    noise = 0.1**0.5
    task = tasks.LinearRegression(40, 5, noise=noise, prior=0.2 * np.eye(5))
    loss, error = predictors.bayes_loss(task, jax.random.key(0), num_prompts=20_000)
    prompt = task.sample(jax.random.key(1), 40_000)
    residuals = np.asarray(predictors.ridge(prompt, 0.5) - prompt.target, np.float64) ** 2
    assert abs(residuals.mean() - float(loss)) <= 3 * residuals.std() / 200
    assert abs(float(loss) - 0.11444) <= 3 * float(error) + 5e-6  # quoted to five digits
    assert float(error) < 1e-4


def test_gradient_steps():
    with jax.enable_x64(True):
        prompt = draw(noise=0.4)
        P = np.arange(9.0).reshape(3, 3) / 100
        for place in range(4):
            x, y, q = (np.asarray(part[place]) for part in prompt[:3])
            w = np.zeros(3)
            for _ in range(5):
                w += 0.02 * x.T @ (y - x @ w)
            five = predictors.gradient_descent(prompt, 0.02, num_steps=5)[place]
            np.testing.assert_allclose(five, w @ q, rtol=1e-10)
            np.testing.assert_allclose(
                predictors.preconditioned(prompt, P)[place], q @ P @ x.T @ y, rtol=1e-10
            )
            centred = x - x.mean(0)
            np.testing.assert_allclose(
                predictors.debiased(prompt, 0.02)[place], 0.02 * q @ centred.T @ y, rtol=1e-9
            )
        plain = predictors.gradient_descent(prompt, 0.02, num_steps=4)
        same = predictors.gd_plus_plus(prompt, 0.02, 0.0, num_steps=4)
        np.testing.assert_allclose(same, plain, rtol=1e-10)


def test_discrete_mmse_is_bayes_over_the_pool():
    with jax.enable_x64(True):
        pool = np.random.default_rng(0).normal(size=(6, 3))
        prompt = tasks.TaskPool(pool=pool, num_context=2, noise=0.8).sample(jax.random.key(0), 5)
        answers = predictors.discrete_mmse(prompt, pool, noise=0.8)
        for place in range(5):
            x, y, q = (np.asarray(part[place]) for part in prompt[:3])
            likelihood = np.array([np.exp(-np.sum((y - x @ w) ** 2) / 1.28) for w in pool])
            expected = likelihood @ (pool @ q) / likelihood.sum()
            np.testing.assert_allclose(answers[place], expected, rtol=1e-9)
        many = tasks.TaskPool(pool=pool, num_context=2, noise=0.8).sample(jax.random.key(1), 5000)

        def risk(answers):
            return float(np.mean((np.asarray(answers) - np.asarray(many.target)) ** 2))

        best = risk(predictors.discrete_mmse(many, pool, noise=0.8))
        assert best < risk(predictors.ridge(many, 0.64))


@pytest.mark.parametrize(
    "options",
    [
        {"covariance": np.array([[1.0, 0.5], [0.5, 2.0]]), "mean": np.array([1.0, -2.0])},
        {"half_width": 0.5},
        {"prior": np.array([[1.0, 0.2], [0.2, 0.1]])},
    ],
)
def test_moments_of_prompts(options):
    size = 60_000
    task = tasks.LinearRegression(3, 2, noise=0.3, **options)
    prompt = task.sample(jax.random.key(0), size)
    x = np.asarray(prompt.query, np.float64)
    expected = options.get("covariance", np.eye(2))
    if "half_width" in options:
        expected = np.eye(2) / 12
        assert np.abs(x).max() <= 0.5
    np.testing.assert_allclose(np.cov(x.T), expected, atol=0.03)
    np.testing.assert_allclose(x.mean(0), options.get("mean", np.zeros(2)), atol=0.03)
    # E[y^2] = sigma^2 + E[x^T W x], over query and context alike.
    second = expected + np.outer(x.mean(0), x.mean(0))
    power = 0.09 + np.trace(options.get("prior", np.eye(2)) @ second)
    for answers in (prompt.target, prompt.y[:, 0]):
        assert np.mean(np.asarray(answers, np.float64) ** 2) == pytest.approx(power, rel=0.04)


def test_prompts_depend_on_the_key_alone_and_multi_task_on_its_support():
    task = tasks.LinearRegression(3, 2)
    first, again = (task.sample(jax.random.key(0), 4) for _ in range(2))
    np.testing.assert_array_equal(first.y, again.y)
    assert not np.array_equal(first.y, task.sample(jax.random.key(1), 4).y)
    multi = tasks.MultiTask(num_context=30, supports=((0, 1), (2,)), dim=3)
    prompt = multi.sample(jax.random.key(0), 5)
    for place in range(5):  # without noise the outputs are linear on their supports
        for output, support in enumerate(multi.supports):
            x = np.asarray(prompt.x[place])[:, support]
            _, residual, *_ = np.linalg.lstsq(x, np.asarray(prompt.y[place, :, output]), rcond=None)
            assert residual[0] < 1e-8


def test_refuses_bad_arguments():
    prompt = tasks.LinearRegression(9, 3).sample(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="ridge: penalty must be finite and > 0"):
        predictors.ridge(prompt, 0.0)
    with pytest.raises(ValueError, match="ridge: a prompt needs x"):
        predictors.ridge((prompt.x, prompt.query, prompt.y), 1.0)
    with pytest.raises(ValueError, match="response must be 'identity' or 'relu'"):
        tasks.LinearRegression(3, 2, response="tanh").sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="exclude each other"):
        tasks.LinearRegression(3, 2, half_width=1.0, covariance=np.eye(2)).sample(
            jax.random.key(0), 2
        )
    with pytest.raises(ValueError, match=r"supports\[0\] must hold coordinates"):
        tasks.MultiTask(num_context=3, supports=((5,),), dim=2).sample(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="correlation must be in"):
        tasks.toeplitz(3, 1.0)
