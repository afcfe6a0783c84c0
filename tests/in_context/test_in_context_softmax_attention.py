"""Heads of softmax attention: reduced and full, their limits, exact optima and dynamics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from in_context import linear_attention, predictors, softmax_attention, tasks

NOISE = 0.1**0.5
SETTING = {"noise": NOISE, "prior_variance": 0.2}


def prompts(n=40, size=2000, dtype="float64", seed=0):
    task = tasks.LinearRegression(n, 5, noise=NOISE, prior=0.2 * np.eye(5), dtype=dtype)
    return task.sample(jax.random.key(seed), size)


def by_loops(omega, mu, x, y, query):
    total = 0.0
    for w, m in zip(omega, mu):
        weights = np.exp(w * x @ query)
        total += m * (weights / weights.sum()) @ y
    return total


def test_heads_against_loops_and_the_full_layer():
    with jax.enable_x64(True):
        prompt = prompts(size=5)
        omega, mu = np.array([0.4, -0.2, 0.1]), np.array([2.0, -1.5, 0.3])
        answers = softmax_attention.apply_heads(omega, mu, prompt)
        expected = [
            by_loops(omega, mu, *(np.asarray(part[i]) for part in prompt[:3])) for i in range(5)
        ]
        np.testing.assert_allclose(answers, expected, rtol=1e-12)
        layer = softmax_attention.from_heads(omega, mu, 5)
        np.testing.assert_allclose(softmax_attention.apply(layer, prompt), expected, rtol=1e-12)
        single = softmax_attention.apply_heads(omega, mu, tuple(part[0] for part in prompt[:3]))
        np.testing.assert_allclose(single, expected[0], rtol=1e-12)


def test_full_layer_against_its_definition():
    """Every matrix of every head, one prompt at a time."""
    with jax.enable_x64(True):
        prompt = prompts(n=7, size=3)
        params = softmax_attention.init(jax.random.key(0), 5, 2)
        for place in range(3):
            x, y, query = (np.asarray(part[place]) for part in prompt[:3])
            z = np.column_stack([x, y])
            asked = np.append(query, 0.0)
            total = 0.0
            for Q, K, V, O in zip(*(np.asarray(leaf) for leaf in params)):
                logits = (z @ K.T) @ (Q @ asked) / np.sqrt(6)
                weights = np.exp(logits) / np.exp(logits).sum()
                total += (O @ V @ z.T @ weights)[0]
            answer = softmax_attention.apply(params, prompt)[place]
            np.testing.assert_allclose(answer, total, rtol=1e-6)


def test_small_heads_are_debiased_gradient_descent():
    with jax.enable_x64(True):
        prompt = prompts(size=200)
        limit = softmax_attention.debiased_gradient_descent(prompt, 0.9)
        x, y, query = (np.asarray(part) for part in prompt[:3])
        by_hand = 0.9 / 40 * np.einsum("bnd,bn,bd->b", x - x.mean(1, keepdims=True), y, query)
        np.testing.assert_allclose(limit, by_hand, rtol=1e-10, atol=1e-14)
        gaps = []
        for small in (1e-2, 1e-3):
            heads = softmax_attention.apply_heads(
                np.array([small, -small]), np.array([0.45, -0.45]) / small, prompt
            )
            gaps.append(float(jnp.max(jnp.abs(heads - limit))))
        assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


def test_exact_debiased_optimum():
    with jax.enable_x64(True):
        for n, expected in ((20, 0.35490), (40, 0.24286), (100, 0.16161)):
            step = softmax_attention.optimal_debiased(n, 5, **SETTING)
            assert step.loss == pytest.approx(expected, abs=5e-6)
            eye = np.eye(5)
            exact = linear_attention.debiased_loss(
                step.learning_rate / n * eye, n, covariance=eye, prior=0.2 * eye, noise=NOISE
            )
            np.testing.assert_allclose(step.loss, exact, rtol=1e-12)
            plain = linear_attention.optimal_step(n, 5, **SETTING)
            assert plain.loss < step.loss  # centring costs a little where the mean is zero
        prompt = prompts(size=20_000)
        answers = softmax_attention.debiased_gradient_descent(
            prompt, softmax_attention.optimal_debiased(40, 5, **SETTING).learning_rate
        )
        errors = np.asarray((answers - prompt.target) ** 2)
        assert abs(errors.mean() - 0.242857) <= 4 * errors.std() / 20_000**0.5


def test_published_heads_reach_the_published_loss():
    prompt = prompts(size=50_000, dtype="float32", seed=3)
    losses = {}
    for name, omega, mu in (
        ("two", [0.13, -0.13], [3.45, -3.45]),
        ("one", [0.5177], [1.5523]),
    ):
        answers = softmax_attention.apply_heads(np.array(omega), np.array(mu), prompt)
        errors = np.asarray((answers - prompt.target) ** 2, np.float64)
        losses[name] = errors.mean(), errors.std() / 50_000**0.5
    assert abs(losses["two"][0] - 0.24269) <= 4 * (losses["two"][1] + 3e-4)
    assert losses["one"][0] >= 1.6 * losses["two"][0]


def test_approximate_loss_is_what_its_derivation_says():
    """Heads are independent given softmax's log-sum-exp: E over inputs is a Gaussian integral."""
    with jax.enable_x64(True):
        # For H = 1 the term exp(d omega^2) is E exp(2 omega |q| z) / (E exp(omega |q| z))^2 at
        # |q|^2 = d, an integral that SciPy takes.
        omega, mu, n, d = 0.3, 1.7, 40, 5

        def moment(scale):
            return scipy.integrate.quad(
                lambda z: np.exp(scale * z - z**2 / 2) / np.sqrt(2 * np.pi), -15, 15
            )[0]

        spread = moment(2 * omega * d**0.5) / moment(omega * d**0.5) ** 2
        expected = 1.1 - 2 * mu * omega + mu**2 * (omega**2 + 1.1 / n * spread)
        found = softmax_attention.approximate_loss(
            np.array([omega]), np.array([mu]), n, d, noise=NOISE
        )
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_limits_of_the_reduced_loss():
    with jax.enable_x64(True):

        def best(log_omega):
            omega = np.exp(log_omega) * np.ones(1)
            mu = softmax_attention.optimal_mu(omega, 40, 5, noise=NOISE)
            return float(softmax_attention.approximate_loss(omega, mu, 40, 5, noise=NOISE))

        found = scipy.optimize.minimize_scalar(best, bounds=(-3, 1), method="bounded")
        assert np.exp(found.x) == pytest.approx(5**-0.5, rel=1e-4)
        one = softmax_attention.approximate_limit(40, 5, noise=NOISE, num_heads=1)
        assert found.fun == pytest.approx(one, rel=1e-9)
        two = softmax_attention.approximate_limit(40, 5, noise=NOISE)
        assert two == pytest.approx(0.2209, abs=5e-5)
        omega = np.array([1e-3, -1e-3])
        mu = softmax_attention.optimal_mu(omega, 40, 5, noise=NOISE)
        near = softmax_attention.approximate_loss(omega, mu, 40, 5, noise=NOISE)
        assert 0 < float(near) - two < 1e-5


def test_gradient_flow_finds_opposite_heads():
    with jax.enable_x64(True):
        flow = softmax_attention.gradient_flow(
            np.array([0.1, -0.05]), np.array([0.1, -0.2]), 40, 5, noise=NOISE, num_steps=40_000
        )
        assert (np.diff(flow.losses) <= 1e-15).all()
        omega, mu = np.asarray(flow.omega[-1]), np.asarray(flow.mu[-1])
        assert abs(mu.sum()) < 1e-4
        assert (np.sign(omega) == np.sign(mu)).all()
        assert np.ptp(np.abs(omega)) < 0.01 * np.abs(omega).mean()
        assert np.abs(flow.omega).max() > 1.5 * np.abs(omega[0])  # it overshot before


def test_decomposition_reads_a_known_layer_and_ignores_dummies():
    with jax.enable_x64(True):
        omega, mu = np.array([0.3, -0.3, 0.7]), np.array([2.0, -2.0, 1e-3])
        layer = softmax_attention.from_heads(omega, mu, 5)
        noisy = layer._replace(key=layer.key.at[2].set(1.0))  # the dummy head's circuit is noise
        found = softmax_attention.decompose(noisy)
        np.testing.assert_allclose(found.omega[:2], omega[:2], rtol=1e-12)
        np.testing.assert_allclose(found.mu[:, 0], mu, rtol=1e-12)
        np.testing.assert_array_equal(found.active, [True, True, False])
        assert float(found.diagonal_energy[2]) < 0.5
        assert float(found.weighted_diagonal_energy) > 0.999
        assert float(found.weighted_last_entry_energy) == pytest.approx(1.0)
        assert float(found.omega_spread) == pytest.approx(0.0, abs=1e-12)
        assert float(found.mu_imbalance) == pytest.approx(1e-3 / 4.001, rel=1e-6)


def test_training_lowers_the_loss_and_multi_task_has_outputs():
    task = tasks.MultiTask(num_context=12, supports=((0, 1), (1, 2)), dim=3, noise=0.1)
    run = jax.jit(
        lambda key: softmax_attention.train(
            task, 3, num_heads=3, num_outputs=2, key=key, num_steps=400, batch_size=64
        )
    )
    trained = run(jax.random.key(0))
    assert float(trained.losses[-1]) < 0.9 * float(trained.losses[0])
    prompt = task.sample(jax.random.key(1), 4)
    assert softmax_attention.apply(trained.params, prompt).shape == (4, 2)
    assert softmax_attention.decompose(trained.params).mu.shape == (3, 2)


def test_debiased_steps_are_immune_to_a_covariate_mean():
    with jax.enable_x64(True):
        mean = np.array([3.0, 0, 0, 0, 0])
        task = tasks.LinearRegression(
            40, 5, noise=NOISE, prior=0.2 * np.eye(5), mean=mean, dtype="float64"
        )
        prompt = task.sample(jax.random.key(0), 20_000)
        rate = softmax_attention.optimal_debiased(40, 5, **SETTING).learning_rate
        errors = {}
        for name, answers in (
            ("debiased", softmax_attention.debiased_gradient_descent(prompt, rate)),
            ("plain", predictors.gradient_descent(prompt, 1 / 46.5)),
        ):
            errors[name] = np.asarray((answers - prompt.target) ** 2)
        eye = np.eye(5)
        exact = linear_attention.debiased_loss(
            rate / 40 * eye, 40, covariance=eye, prior=0.2 * eye, noise=NOISE, mean=mean
        )
        assert abs(errors["debiased"].mean() - float(exact)) <= 3 * errors["debiased"].std() / 141
        assert errors["plain"].mean() > 100 * errors["debiased"].mean()


def test_matrix_heads_are_the_preconditioned_step_and_its_optimum_is_exact():
    """Anisotropic inputs: small heads +-omega of matrices reach the best preconditioned step."""
    with jax.enable_x64(True):
        covariance = np.asarray(tasks.toeplitz(5, 0.5))
        prior = np.diag([0.1, 0.2, 0.3, 0.2, 0.2])
        moments = {"covariance": covariance, "prior": prior, "noise": NOISE}
        P, loss = softmax_attention.optimal_preconditioned(40, **moments)
        slope = jax.grad(lambda P: linear_attention.debiased_loss(P, 40, **moments))(P)
        np.testing.assert_allclose(slope, 0.0, atol=1e-12)
        np.testing.assert_allclose(loss, linear_attention.debiased_loss(P, 40, **moments))
        isotropic, _ = softmax_attention.optimal_preconditioned(
            40, covariance=np.eye(5), prior=0.2 * np.eye(5), noise=NOISE
        )
        rate = softmax_attention.optimal_debiased(40, 5, **SETTING).learning_rate
        np.testing.assert_allclose(isotropic, rate / 40 * np.eye(5), atol=1e-15)
        task = tasks.LinearRegression(40, 5, dtype="float64", **moments)
        prompt = task.sample(jax.random.key(0), 20_000)
        eps = 1e-3
        omega, mu = eps * np.stack([P, -P]), np.array([1, -1]) * 40 / (2 * eps)
        answers = softmax_attention.apply_heads(omega, mu, prompt)
        x, y, query = (np.asarray(part[0]) for part in prompt[:3])
        one = by_loops([1.0, -1.0], mu, x @ omega[0], y, query)
        np.testing.assert_allclose(answers[0], one, rtol=1e-8)
        np.testing.assert_allclose(answers[0], query @ P.T @ (x - x.mean(0)).T @ y, rtol=1e-4)
        layer = softmax_attention.from_heads(omega, mu, 5)
        np.testing.assert_allclose(softmax_attention.apply(layer, prompt), answers, atol=1e-9)
        errors = np.asarray((answers - prompt.target) ** 2)
        assert abs(errors.mean() - float(loss)) <= 4 * errors.std() / 20_000**0.5


def test_refuses_bad_arguments():
    prompt = prompts(size=2, dtype="float32")
    with pytest.raises(ValueError, match=r"omega and mu must be \[H\]"):
        softmax_attention.apply_heads(np.ones(2), np.ones(3), prompt)
    with pytest.raises(ValueError, match="a prompt needs x"):
        softmax_attention.apply_heads(np.ones(2), np.ones(2), (prompt.x, prompt.y, prompt.x))
    with pytest.raises(ValueError, match="must divide num_steps"):
        softmax_attention.gradient_flow(np.ones(1), np.ones(1), 40, 5, num_steps=10, num_records=3)
    with pytest.raises(ValueError, match="optimal_debiased: n must be an integer >= 2"):
        softmax_attention.optimal_debiased(1, 5)


@pytest.mark.slow
def test_two_heads_recover_the_pattern_in_20k_steps():
    """Three seeds of the full layer, from torch's initialisation to the published pattern."""
    task = tasks.LinearRegression(40, 5, noise=NOISE, prior=0.2 * np.eye(5))
    run = jax.jit(lambda key: softmax_attention.train(task, 5, num_heads=2, key=key))
    with jax.enable_x64(True):
        prompt = prompts(size=100_000, seed=11)
    prompt = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), prompt)
    rate = softmax_attention.optimal_debiased(40, 5, **SETTING).learning_rate
    best = np.asarray(
        (softmax_attention.debiased_gradient_descent(prompt, rate) - prompt.target) ** 2
    ).mean(dtype=np.float64)
    for seed in range(3):
        params = run(jax.random.key(seed)).params
        found = softmax_attention.decompose(params)
        assert float(found.mu_imbalance) <= 0.005
        assert float(found.omega_spread) <= 0.03
        assert float(found.weighted_diagonal_energy) >= 0.999
        assert float(found.weighted_last_entry_energy) >= 0.999
        assert (np.sign(found.omega) == np.sign(found.mu[:, 0])).all()
        loss = softmax_attention.squared_error(params, prompt)
        assert float(loss) <= 1.015 * best  # on common prompts
        for n in (100, 200):  # longer prompts than it was trained on
            longer = prompts(n=n, size=20_000, dtype="float32", seed=12)
            debiased = softmax_attention.debiased_gradient_descent(longer, rate)
            expected = float(jnp.mean((debiased - longer.target) ** 2))
            assert float(softmax_attention.squared_error(params, longer)) <= 1.05 * expected


@pytest.mark.slow
def test_two_heads_learn_the_preconditioner_of_anisotropic_inputs():
    """Toeplitz(0.5): the trained circuits add up to the exact optimum of the debiased family."""
    covariance = tasks.toeplitz(5, 0.5)
    moments = {"covariance": covariance, "prior": 0.2 * jnp.eye(5), "noise": NOISE}
    task = tasks.LinearRegression(40, 5, **moments)
    run = jax.jit(lambda key: softmax_attention.train(task, 5, num_heads=2, key=key))
    params = run(jax.random.key(0)).params
    found = softmax_attention.decompose(params)
    P, _ = softmax_attention.optimal_preconditioned(40, **moments)
    learned = jnp.einsum("h,hde->de", found.mu[:, 0], found.key_query[:, :5]).T / 40
    assert float(jnp.linalg.norm(learned - P) / jnp.linalg.norm(P)) <= 0.1
    assert float(found.mu_imbalance) <= 0.005
    prompt = task.sample(jax.random.key(1), 100_000)
    plain = jnp.trace(P) / 5 * jnp.eye(5)
    losses = {
        name: float(jnp.mean((predictors.preconditioned(centred(prompt), M) - prompt.target) ** 2))
        for name, M in (("best", P), ("plain", plain))
    }
    loss = float(softmax_attention.squared_error(params, prompt))
    assert loss <= 1.015 * losses["best"]
    assert loss < losses["plain"]


def centred(prompt):
    return prompt._replace(x=prompt.x - jnp.mean(prompt.x, axis=1, keepdims=True))


def test_weight_decay_is_decoupled():
    """After one step the two runs differ by rate * decay * start, whatever the gradient was."""
    task, key = tasks.LinearRegression(8, 3), jax.random.key(0)
    plain, decayed = (
        softmax_attention.train(
            task, 3, num_heads=2, key=key, num_steps=1, num_records=1,
            learning_rate=0.1, weight_decay=decay,
        ).params
        for decay in (0.0, 0.5)
    )  # fmt: skip
    start = softmax_attention.init(jax.random.split(key)[0], 3, 2)
    for before, without, after in zip(start, plain, decayed):
        np.testing.assert_allclose(without - after, 0.05 * before, atol=1e-6)
