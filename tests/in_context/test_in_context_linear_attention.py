"""Closed forms of linear attention against Monte Carlo, gradients and published numbers."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from in_context import alignment, linear_attention, predictors, tasks

SAMPLES = 50_000


def monte_carlo(predict, task, key=0):
    """Mean squared error and its standard error."""
    prompt = task.sample(jax.random.key(key), SAMPLES)
    errors = np.asarray((predict(prompt) - prompt.target) ** 2)
    return errors.mean(), errors.std() / SAMPLES**0.5


def within(expected, measured, errors=4.0):
    mean, error = measured
    assert abs(mean - float(expected)) <= errors * error, (mean, error, float(expected))


def setting():
    covariance = np.asarray(tasks.toeplitz(3, 0.5))
    prior = np.diag([1.0, 2.0, 0.5])
    return {"covariance": covariance, "prior": prior, "noise": 0.5}


def test_optimum_is_isotropic_where_the_theorem_says_so():
    with jax.enable_x64(True):
        for n, d, sigma, tau2 in ((20, 5, 0.5, 1.0), (40, 5, 0.1**0.5, 0.2), (10, 10, 0.0, 3.0)):
            P, loss = linear_attention.optimal(
                n, covariance=np.eye(d), prior=tau2 * np.eye(d), noise=sigma
            )
            ratio = sigma**2 / tau2
            np.testing.assert_allclose(P, np.eye(d) / (n + d + 1 + ratio), rtol=1e-12, atol=1e-17)
            expected = sigma**2 + tau2 * d * (d + 1 + ratio) / (n + d + 1 + ratio)
            np.testing.assert_allclose(loss, expected, rtol=1e-12)
            step = linear_attention.optimal_step(n, d, noise=sigma, prior_variance=tau2)
            np.testing.assert_allclose([step.learning_rate, step.loss], [P[0, 0], loss], rtol=1e-12)


@pytest.mark.parametrize("mean", [None, (0.5, -1.0, 2.0)])
def test_optimum_is_stationary_and_its_loss_is_measured(mean):
    with jax.enable_x64(True):
        options = setting() | ({} if mean is None else {"mean": np.array(mean)})
        P, loss = linear_attention.optimal(8, **options)
        slope = jax.grad(lambda P: linear_attention.population_loss(P, 8, **options))(P)
        np.testing.assert_allclose(slope, 0.0, atol=1e-11)
        task = tasks.LinearRegression(8, 3, dtype="float64", **options)
        within(loss, monte_carlo(lambda p: predictors.preconditioned(p, P), task))
        # Away from the optimum and not symmetric, where a transposed factor would show.
        P = np.asarray(P) + 0.03 * np.arange(9.0).reshape(3, 3)
        exact = linear_attention.population_loss(P, 8, **options)
        within(exact, monte_carlo(lambda p: predictors.preconditioned(p, P), task, 1))
        exact = linear_attention.debiased_loss(P, 8, **options)

        def centred(prompt):
            return predictors.preconditioned(
                prompt._replace(x=prompt.x - prompt.x.mean(axis=1, keepdims=True)), P
            )

        within(exact, monte_carlo(centred, task, 2))


def test_published_preconditioner_and_the_price_of_plain_steps():
    with jax.enable_x64(True):
        covariance = np.asarray(tasks.toeplitz(5, 0.5))
        options = {"covariance": covariance, "noise": 0.5}
        P, loss = linear_attention.optimal(20, **options)
        expected = np.linalg.inv(21 * covariance + (5 + 0.25) * np.eye(5))
        np.testing.assert_allclose(P, expected, rtol=1e-12)
        assert float(loss) == pytest.approx(1.3697, abs=5e-5)
        plain = [
            float(
                linear_attention.population_loss(
                    c * np.eye(5), 20, covariance=covariance, noise=0.5
                )
            )
            for c in np.linspace(0.005, 0.05, 200)
        ]
        assert min(plain) / float(loss) == pytest.approx(1.39, abs=0.01)
        # Sigma = W^-1 (Mahankali et al., theorem 2): the isotropic step in whitened coordinates.
        prior = np.linalg.inv(covariance)
        P, _ = linear_attention.optimal(20, covariance=covariance, prior=prior, noise=0.5)
        np.testing.assert_allclose(P, prior / (20 + 5 + 1 + 0.25), atol=1e-13)


def test_uniform_inputs_and_relu_answers():
    step = linear_attention.optimal_uniform_step(10, 10, half_width=0.5)
    assert step.learning_rate == pytest.approx(0.6060606, abs=1e-7)
    assert step.loss / 2 == pytest.approx(0.206229, abs=1e-6)  # von Oswald's figure 2
    relu = linear_attention.optimal_relu_step(12, 4, noise=0.5)
    assert relu.learning_rate == pytest.approx(1 / (12 + 8 + 3 + 1), rel=1e-15)
    for step, task in (
        (
            linear_attention.optimal_uniform_step(9, 4, half_width=0.7, noise=0.3),
            tasks.LinearRegression(9, 4, noise=0.3, half_width=0.7),
        ),
        (relu, tasks.LinearRegression(12, 4, noise=0.5, response="relu")),
    ):
        within(
            step.loss,
            monte_carlo(lambda p: predictors.gradient_descent(p, step.learning_rate), task),
        )
        for factor in (0.8, 1.2):
            rate = factor * step.learning_rate
            worse, _ = monte_carlo(lambda p: predictors.gradient_descent(p, rate), task)
            assert worse > step.loss


def test_any_response_by_quadrature():
    for response, known in (
        (lambda t: t, linear_attention.optimal_step(12, 4, noise=0.5)),
        (lambda t: np.maximum(t, 0), linear_attention.optimal_relu_step(12, 4, noise=0.5)),
    ):
        found = linear_attention.optimal_response_step(response, 12, 4, noise=0.5)
        np.testing.assert_allclose(found, known, rtol=1e-12)
    # sign: E[sign(z) z] = sqrt(2 / pi), so both moments are elementary.
    step = linear_attention.optimal_response_step(np.sign, 12, 4)
    slope = 2 / np.pi
    assert step.learning_rate == pytest.approx(slope / (4 + 11 * slope), rel=1e-12)


def test_length_generalisation_table():
    """The missing 1 / n is the whole of the claim against linear attention."""
    options = {"noise": 0.1**0.5, "prior_variance": 0.2}
    plain = [linear_attention.loss_at_length(40, n, 5, **options) for n in (40, 160)]
    scaled = linear_attention.loss_at_length(40, 160, 5, normalised=True, **options)
    np.testing.assert_allclose([*plain, scaled], [0.239785, 6.538779, 0.149601], atol=1e-6)
    with jax.enable_x64(True):
        eye = np.eye(5)
        P, _ = linear_attention.optimal(40, covariance=eye, prior=0.2 * eye, noise=0.1**0.5)
        for factor, expected in ((1.0, plain[1]), (40 / 160, scaled)):
            exact = linear_attention.population_loss(
                factor * P, 160, covariance=eye, prior=0.2 * eye, noise=0.1**0.5
            )
            np.testing.assert_allclose(exact, expected, rtol=1e-12)


def test_full_layer_loss_is_exact():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = linear_attention.LayerParams(
            jnp.asarray(0.1 * rng.normal(size=(4, 4))), jnp.asarray(0.5 * rng.normal(size=4))
        )
        task = tasks.LinearRegression(6, 3, dtype="float64", **setting())
        exact = linear_attention.layer_loss(params, 6, **setting())
        within(exact, monte_carlo(lambda p: linear_attention.apply(params, p), task))
        P, loss = linear_attention.optimal(6, **setting())
        best = linear_attention.constructed(P)
        np.testing.assert_allclose(
            linear_attention.layer_loss(best, 6, **setting()), loss, rtol=1e-12
        )
        np.testing.assert_allclose(linear_attention.summarise(best).P, P, rtol=1e-15)
        # The optimum among full layers: nothing nearby is better.
        slope = jax.grad(lambda p: linear_attention.layer_loss(p, 6, **setting()))(best)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-12


def test_full_layer_loss_by_quadrature():
    """Gauss-Hermite nodes are exact for these polynomials, so every moment shows to 12 digits."""
    covariance, prior = np.array([[1.0, 0.5], [0.5, 2.0]]), np.array([[1.0, -0.3], [-0.3, 0.4]])
    rng = np.random.default_rng(0)
    key_query, value = rng.normal(size=(3, 3)), rng.normal(size=3)
    grids = [5] * 4 + [3] * 4  # two inputs in the plane: degree 8; weights and noise: degree 4
    nodes, weights = zip(*(np.polynomial.hermite_e.hermegauss(count) for count in grids))
    z = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")])
    share = np.prod(np.meshgrid(*weights, indexing="ij"), axis=0).ravel() / (2 * np.pi) ** 4
    x = np.linalg.cholesky(covariance) @ z[:4].reshape(2, 2, -1)
    w = np.linalg.cholesky(prior) @ z[4:6]
    y = np.einsum("nes,es->ns", x, w) + 0.7 * z[6:]
    tokens = np.concatenate([x, y[:, None]], axis=1)  # [n, d + 1, nodes]
    answer = np.einsum("de,nes,nfs,f->ds", key_query[:2], tokens, tokens, value) - w
    expected = 0.49 + share @ np.einsum("ds,de,es->s", answer, covariance, answer)
    with jax.enable_x64(True):
        exact = linear_attention.layer_loss(
            linear_attention.LayerParams(jnp.asarray(key_query), jnp.asarray(value)),
            2,
            covariance=covariance,
            prior=prior,
            noise=0.7,
        )
        np.testing.assert_allclose(exact, expected, rtol=1e-12)


def test_token_construction_is_gradient_descent():
    with jax.enable_x64(True):
        prompt = tasks.LinearRegression(9, 3, noise=0.3, dtype="float64").sample(
            jax.random.key(0), 6
        )
        plain = linear_attention.gradient_descent_weights(3, 0.05)
        layers = linear_attention.token_stack(plain, prompt, num_layers=4)
        for place in range(4):
            expected = [
                steps_of_least_squares(x, y, q, 0.05, place + 1)
                for x, y, q in zip(prompt.x, prompt.y, prompt.query)
            ]
            np.testing.assert_allclose(layers[place], expected, rtol=1e-11)
        better = linear_attention.gradient_descent_weights(3, 0.05, curvature=0.01)
        np.testing.assert_allclose(
            linear_attention.token_stack(better, prompt, num_layers=3)[-1],
            predictors.gd_plus_plus(prompt, 0.05, 0.01, num_steps=3),
            rtol=1e-11,
        )


def steps_of_least_squares(x, y, query, rate, count):
    w = np.zeros(x.shape[1])
    for _ in range(count):
        w = w - rate * np.asarray(x).T @ (np.asarray(x) @ w - np.asarray(y))
    return np.asarray(query) @ w


def test_alignment_measures():
    with jax.enable_x64(True):
        prompt = tasks.LinearRegression(9, 3, dtype="float64").sample(jax.random.key(0), 50)

        def reference(p):
            return predictors.gradient_descent(p, 0.05)

        same = alignment.compare(reference, reference, prompt)
        assert float(same.prediction_difference) == 0.0
        assert float(same.sensitivity_cosine) == pytest.approx(1.0)
        double = alignment.compare(lambda p: 2 * reference(p) + 1, reference, prompt)
        assert float(double.sensitivity_cosine) == pytest.approx(1.0)
        answers = np.asarray(reference(prompt))
        assert float(double.prediction_difference) == pytest.approx(np.abs(answers + 1).mean())
        weights = 0.05 * np.einsum("bnd,bn->bd", prompt.x, prompt.y)
        expected = np.linalg.norm(weights, axis=1).mean()
        assert float(double.sensitivity_difference) == pytest.approx(expected)


def test_a_short_run_already_comes_close():
    task = tasks.LinearRegression(20, 5, noise=0.5)
    run = jax.jit(lambda key: linear_attention.train(task, 5, key=key, num_steps=1000))
    trained = run(jax.random.key(0))
    optimum = linear_attention.optimal(20, covariance=np.eye(5), noise=0.5)
    loss = linear_attention.layer_loss(trained.params, 20, covariance=np.eye(5), noise=0.5)
    assert 0 <= float(loss / optimum.loss) - 1 < 0.01


SETTINGS = ((20, 5, 0.0), (20, 5, 0.5), (10, 10, 0.5), (40, 10, 1.0))


@pytest.mark.slow
def test_training_lands_on_the_exact_optimum_in_ninety_cpu_seconds():
    """Four settings and three seeds; the population loss of the trained layer is exact."""
    start = time.process_time()
    for n, d, noise in SETTINGS:
        task = tasks.LinearRegression(n, d, noise=noise)
        run = jax.jit(
            jax.vmap(
                lambda key, task=task, d=d: linear_attention.train(task, d, key=key, num_steps=4000)
            )
        )
        params = run(jax.random.split(jax.random.key(0), 3)).params
        optimum = linear_attention.optimal(n, covariance=np.eye(d), noise=noise)
        for seed in range(3):
            own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], params)
            loss = linear_attention.layer_loss(own, n, covariance=np.eye(d), noise=noise)
            assert 0 <= float(loss / optimum.loss) - 1 <= 2e-3
            summary = linear_attention.summarise(own)
            assert abs(float(summary.learning_rate / optimum.P[0, 0]) - 1) <= 5e-3
            assert float(summary.off_diagonal) <= 0.03
    assert time.process_time() - start <= 90


@pytest.mark.slow
def test_training_finds_the_preconditioner():
    covariance = tasks.toeplitz(5, 0.5)
    task = tasks.LinearRegression(20, 5, noise=0.5, covariance=covariance)
    run = jax.jit(jax.vmap(lambda key: linear_attention.train(task, 5, key=key, num_steps=4000)))
    params = run(jax.random.split(jax.random.key(0), 3)).params
    optimum = linear_attention.optimal(20, covariance=covariance, noise=0.5)
    for seed in range(3):
        P = linear_attention.summarise(jax.tree.map(lambda leaf: leaf[seed], params)).P
        assert float(jnp.linalg.norm(P - optimum.P) / jnp.linalg.norm(optimum.P)) <= 0.02


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match="optimal: n must be an integer >= 1, got 0"):
        linear_attention.optimal(0, covariance=np.eye(2))
    with pytest.raises(ValueError, match="covariance must be a matrix"):
        linear_attention.optimal(3, covariance=np.ones(2))
    with pytest.raises(ValueError, match=r"prior must have shape \(2, 2\)"):
        linear_attention.optimal(3, covariance=np.eye(2), prior=np.eye(3))
    with pytest.raises(ValueError, match="noise must be finite and >= 0, got -1"):
        linear_attention.optimal(3, covariance=np.eye(2), noise=-1)
    with pytest.raises(ValueError, match="half_width must be finite and > 0"):
        linear_attention.optimal_uniform_step(3, 2, half_width=0.0)
