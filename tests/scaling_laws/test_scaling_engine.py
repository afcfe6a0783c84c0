"""The batched solver against SciPy and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from scaling_laws import _levenberg


def residual(z, inputs, targets):
    return jnp.log(jnp.exp(z[0]) + jnp.exp(z[1] - z[2] * inputs["x"])) - targets


def problems(number, seed=0):
    """Noisy power laws, every one with its own targets and weights."""
    rng = np.random.default_rng(seed)
    x = np.linspace(-2, 2, 40)
    truth = np.array([0.2, -0.3, 0.6])
    clean = np.log(np.exp(truth[0]) + np.exp(truth[1] - truth[2] * x))
    targets = clean + 0.01 * rng.standard_t(3, size=(number, 40))
    index = np.arange(number)
    zero = np.zeros(number, int)
    return _levenberg.Batch(
        start=truth + rng.normal(scale=0.5, size=(number, 3)),
        inputs={"x": x[None]},
        targets=targets,
        weights=rng.integers(0, 3, size=(number, 40)).astype(float),
        lower=np.full((1, 3), -10.0),
        upper=np.full((1, 3), 10.0),
        which=np.stack([zero, index, index, zero], axis=1),
    )


def test_every_problem_of_a_batch_reaches_scipys_optimum():
    batch = problems(11)
    solved = _levenberg.solve(
        residual, batch, kind="huber", delta=1e-2, tolerance=1e-14, lanes=4, max_iterations=300
    )
    x = batch.inputs["x"][0]
    for row in range(11):
        root = np.sqrt(batch.weights[row])

        def objective(z, row=row):
            r = np.log(np.exp(z[0]) + np.exp(z[1] - z[2] * x)) - batch.targets[row]
            size = np.abs(r)
            terms = np.where(size <= 1e-2, r**2 / 2, 1e-2 * (size - 5e-3))
            return np.sum(root**2 * terms)

        found = optimize.minimize(objective, solved.z[row], method="Nelder-Mead",
                                  options={"xatol": 1e-9, "fatol": 1e-15})  # fmt: skip
        assert solved.objective[row] == pytest.approx(objective(solved.z[row]), rel=1e-12)
        assert solved.objective[row] <= found.fun * (1 + 1e-7)
    assert solved.converged.all()


def test_answers_do_not_depend_on_the_number_of_lanes():
    batch = problems(7)
    options = {"kind": "lsq", "delta": 1.0, "tolerance": 1e-14}
    one = _levenberg.solve(residual, batch, lanes=1, **options)
    many = _levenberg.solve(residual, batch, lanes=8, **options)
    np.testing.assert_allclose(one.z, many.z, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(one.iterations, many.iterations)


def test_lbfgs_finds_the_same_optimum_with_gradients_alone():
    batch = problems(5)
    options = {"kind": "student_t", "delta": 1e-2, "tolerance": 1e-13, "max_iterations": 500}
    newton = _levenberg.solve(residual, batch, **options)
    gradient = _levenberg.solve(residual, batch, method="lbfgs", **options)
    np.testing.assert_allclose(gradient.objective, newton.objective, rtol=1e-8)


def test_bounds_hold_and_bind():
    batch = problems(3)._replace(upper=np.array([[10.0, 10.0, 0.4]]))
    solved = _levenberg.solve(residual, batch, kind="lsq", delta=1.0, tolerance=1e-12)
    np.testing.assert_array_equal(solved.z[:, 2], 0.4)
    x = batch.inputs["x"][0]
    for row in range(3):

        def bounded(z, row=row):
            r = np.log(np.exp(z[0]) + np.exp(z[1] - z[2] * x)) - batch.targets[row]
            return np.sqrt(batch.weights[row]) * r

        found = optimize.least_squares(
            bounded,
            [0.0, 0.0, 0.3],
            bounds=([-10, -10, -10], [10, 10, 0.4]),
            xtol=1e-14,
            ftol=1e-14,
        )
        assert solved.objective[row] == pytest.approx(found.cost, rel=1e-6)


def test_a_start_without_a_finite_objective_is_reported_not_followed():
    batch = problems(2)
    start = batch.start.copy()
    start[0] = np.nan
    solved = _levenberg.solve(residual, batch._replace(start=start), kind="lsq", delta=1.0)
    assert np.isinf(solved.objective[0])
    assert not solved.converged[0]
    assert solved.converged[1]


def test_small_systems_are_solved_exactly():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(6, 6)) * np.geomspace(1e-4, 1e4, 6)
    matrix, vector = root.T @ root, rng.normal(size=6)
    with jax.enable_x64(True):
        answer = np.asarray(_levenberg.solve_positive(jnp.asarray(matrix), jnp.asarray(vector)))
    np.testing.assert_allclose(matrix @ answer, vector, rtol=1e-6)


def valley(z, inputs, targets):
    """A parabola as a floor that is a hundred thousand times flatter than its walls."""
    return jnp.stack([3e2 * (z[1] - z[0] ** 2), 1.0 - z[0]]) * inputs["one"] - targets


def test_steps_bend_along_a_valley():
    batch = _levenberg.Batch(
        start=np.array([[-1.2, 1.44]]),
        inputs={"one": np.ones((1, 2))},
        targets=np.zeros((1, 2)),
        weights=np.ones((1, 2)),
        lower=np.full((1, 2), -10.0),
        upper=np.full((1, 2), 10.0),
        which=np.zeros((1, 4), int),
    )
    solved = _levenberg.solve(
        valley, batch, kind="lsq", delta=1.0, tolerance=1e-14, max_iterations=400
    )
    np.testing.assert_allclose(solved.z[0], [1.0, 1.0], atol=1e-6)
    # Straight steps need 249.
    assert solved.iterations[0] <= 100


def test_compiled_programs_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(_levenberg, "MOST_PROGRAMS", 2)
    sizes = []
    for bounds in (5, 6, 7, 8):  # rows that are never used: another shape is another program
        batch = _levenberg.Batch(
            start=np.zeros((1, 2)),
            inputs={"one": np.ones((1, 2))},
            targets=np.zeros((1, 2)),
            weights=np.ones((1, 2)),
            lower=np.full((bounds, 2), -10.0),
            upper=np.full((bounds, 2), 10.0),
            which=np.zeros((1, 4), int),
        )
        _levenberg.solve(valley, batch, kind="lsq", delta=1.0)
        sizes.append(_levenberg._run._cache_size())
    assert max(sizes[1:]) <= 2
