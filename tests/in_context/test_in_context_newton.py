"""Newton, gradient descent and the certificates of softmax regression."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from in_context import softmax_regression
from in_context.softmax_regression._convexity import BALL, ORIGIN, SIMPLEX


def instance(seed, n=7, d=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.dirichlet(np.ones(n))


def scipy_minimum(A, b, w, start):
    def loss(x):
        z = A @ x
        f = np.exp(z - z.max())
        f /= f.sum()
        return 0.5 * np.sum((f - b) ** 2) + 0.5 * np.sum((w * z) ** 2)

    options = {"xatol": 1e-13, "fatol": 1e-17, "maxiter": 20_000, "maxfev": 20_000}
    return scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options)


def test_convex_instances_reach_the_minimum_within_twelve_iterations():
    with jax.enable_x64(True):
        for seed in range(8):
            A, b = instance(seed)
            w = np.asarray(softmax_regression.convex_weights(A, b, strong_convexity=0.05))
            result = softmax_regression.newton(A, b, weights=w)
            assert result.certificate.global_minimum
            assert result.num_iterations <= 12
            assert len(result.minima) == 1
            if seed < 3:  # derivative-free, so it shares no formula
                other = scipy_minimum(A, b, w, np.zeros(2))
                assert float(result.loss) <= other.fun + 1e-12
                np.testing.assert_allclose(result.x, other.x, atol=1e-6)


def test_weak_and_no_regulariser_reach_a_minimum_within_twelve_iterations():
    with jax.enable_x64(True):
        at_infinity = 0
        for seed, weight in itertools.product(range(8), (3e-3, 0.0)):
            A, b = instance(seed)
            result = softmax_regression.newton(A, b, weights=np.full(7, weight))
            assert result.certificate.local_minimum
            assert not result.certificate.global_minimum
            reached = np.asarray(result.losses) - float(result.loss)
            assert (np.diff(result.losses) <= 1e-15).all()
            # Without a regulariser the infimum may lie at infinity, where a row's share is 0.
            if weight == 0 and np.abs(A @ np.asarray(result.x)).max() > 30:
                at_infinity += 1
                continue
            assert np.argmax(reached <= 1e-12) <= 12
        assert at_infinity <= 1


def two_minima():
    # Found by a search over seeds; n = 7, d = 2 as small as such instances are easy to meet.
    rng = np.random.default_rng(TWO_MINIMA_SEED)
    return 3.0 * rng.normal(size=(7, 2)), rng.dirichlet(0.3 * np.ones(7)), np.full(7, 3e-3)


TWO_MINIMA_SEED = 26


def test_multi_start_finds_the_lower_of_two_minima():
    with jax.enable_x64(True):
        A, b, w = two_minima()
        result = softmax_regression.newton(A, b, weights=w)
        assert len(result.minima) >= 2
        assert result.minima[1].loss - result.minima[0].loss > 1e-2
        assert not result.certificate.convex
        # Two of SciPy's runs from either minimum stay there; a grid of them finds nothing lower.
        for minimum in result.minima[:2]:
            other = scipy_minimum(A, b, w, np.asarray(minimum.x) + 1e-3)
            assert abs(other.fun - minimum.loss) < 1e-10
        grid = [scipy_minimum(A, b, w, np.array(s)) for s in itertools.product((-3, 0, 3), (-3, 3))]
        assert float(result.loss) <= min(run.fun for run in grid) + 1e-12
        one = softmax_regression.newton(A, b, weights=w, num_starts=1)
        assert len(one.minima) == 1


def test_random_starts_need_a_key_and_own_starts_are_used():
    with jax.enable_x64(True):
        A, b, w = two_minima()
        with pytest.raises(ValueError, match="pass key="):
            softmax_regression.newton(A, b, weights=w, num_starts=50)
        many = softmax_regression.newton(A, b, weights=w, num_starts=50, key=jax.random.key(0))
        assert sum(minimum.starts for minimum in many.minima) == 50
        own = softmax_regression.newton(A, b, weights=w, num_starts=1, x0=many.minima[1].x)
        assert sum(minimum.starts for minimum in own.minima) == 2


def test_rank_deficient_document():
    with jax.enable_x64(True):
        A, b = instance(3)
        A[:, 1] = -2 * A[:, 0]
        full = softmax_regression.newton(A[:, :1], b, weights=np.zeros(7))
        result = softmax_regression.newton(A, b, weights=np.zeros(7))
        np.testing.assert_allclose(result.loss, full.loss, rtol=1e-12)
        np.testing.assert_allclose(
            softmax_regression.softmax(A, result.x),
            softmax_regression.softmax(A[:, :1], full.x),
            atol=1e-8,
        )


def test_float32_newton_is_certified_at_its_precision():
    A, b = instance(2)
    result = softmax_regression.newton(A.astype(np.float32), b.astype(np.float32))
    assert result.x.dtype == jnp.float32
    assert result.certificate.local_minimum


def test_spectrum_constants():
    # b = (1, 0): the eigenvalue (1 - y)^2 (1 + y) (1 + 3 y) / 4; b on the ball: -5/16 exactly.
    y = np.linspace(-1, 1, 2_000_001)
    values = (1 - y) ** 2 * (1 + y) * (1 + 3 * y) / 4
    np.testing.assert_allclose(SIMPLEX, (values.min(), values.max()), atol=1e-11)
    np.testing.assert_allclose(SIMPLEX, (-0.240409, 0.308117), atol=1e-6)
    np.testing.assert_allclose(BALL, (-5 / 16, 0.359117), atol=1e-6)
    np.testing.assert_allclose(ORIGIN, (-1 / 12, 1 / 4), atol=1e-14)


@pytest.mark.parametrize("radius", [0.0, 0.4, 1.0, 1.7, 6.0])
@pytest.mark.parametrize("n", [2, 5])
def test_no_eigenvalue_leaves_the_bounds(n, radius):
    rng = np.random.default_rng(int(10 * radius) + n)
    seen = []
    for _ in range(1500):
        f = rng.dirichlet(np.full(n, rng.choice([0.2, 1.0, 5.0])))
        b = rng.normal(size=n)
        b *= radius / np.linalg.norm(b)
        P = np.diag(f) - np.outer(f, f)
        g = P @ (f - b)
        eigenvalues = np.linalg.eigvalsh(P @ P + np.diag(g) - np.outer(g, f) - np.outer(f, g))
        seen += [eigenvalues[0], eigenvalues[-1]]
    with jax.enable_x64(True):
        bounds = softmax_regression.spectrum_bounds(b)
        assert float(bounds.low) <= min(seen)
        assert float(bounds.high) >= max(seen)
        if radius == 1.0:
            assert float(bounds.low) == pytest.approx(-0.3125, abs=1e-15)
        if n == 2 and radius in (0.4, 1.0, 1.7):  # no wider than needed, within random search
            assert min(seen) < 0.5 * float(bounds.low)


def test_certificate_of_convexity_is_right():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        for seed in range(3):
            A, b = instance(seed)
            w = np.asarray(softmax_regression.convex_weights(A, b, strong_convexity=0.05))
            certificate = softmax_regression.certify_convex(A, b, weights=w)
            assert bool(certificate.convex)
            assert float(certificate.strong_convexity) >= 0.05 - 1e-12
            assert not bool(certificate.published_convex)
            hessians = jax.vmap(
                lambda x, A=A, b=b, w=w: softmax_regression.hessian(A, x, b, weights=w)
            )(rng.normal(size=(2000, 2)) * 3)
            eigenvalues = np.linalg.eigvalsh(hessians)
            assert eigenvalues.min() >= float(certificate.strong_convexity)
            assert np.abs(eigenvalues).max() <= float(certificate.smoothness)
        A, b, w = two_minima()
        assert not bool(softmax_regression.certify_convex(A, b, weights=w).convex)
        flat = softmax_regression.certify_convex(np.ones((4, 2)), np.full(4, 0.25))
        assert bool(flat.convex)
        assert float(flat.sigma_min) == pytest.approx(0.0, abs=1e-12)


def test_published_constant_asks_for_12_8_times_the_weight():
    with jax.enable_x64(True):
        A, _ = instance(0)
        b = np.zeros(7)
        b[0], b[1] = 0.8, -0.6  # on the sphere, outside the simplex
        w = softmax_regression.convex_weights(A, b)
        assert float(4 / w[0] ** 2) == pytest.approx(12.8)
        published = np.full(7, 2.0)
        certificate = softmax_regression.certify_convex(A, b, weights=published)
        assert bool(certificate.published_convex)


def test_safe_step_never_rises_and_reaches_newton():
    with jax.enable_x64(True):
        A, b = instance(1)
        w = softmax_regression.convex_weights(A, b, strong_convexity=0.3)
        newton = softmax_regression.newton(A, b, weights=w)
        descent = softmax_regression.gradient_descent(A, b, weights=w, num_steps=800)
        assert (np.diff(descent.losses) <= 1e-16).all()
        np.testing.assert_allclose(descent.x, newton.x, atol=1e-9)
        safe = softmax_regression.safe_learning_rate(A, b)
        assert float(safe) >= 1 / (0.36 * np.linalg.norm(A, 2) ** 2)
        still = softmax_regression.gradient_descent(np.ones((4, 2)), np.full(4, 0.25), num_steps=3)
        np.testing.assert_array_equal(still.x, 0.0)


def test_sampled_newton_reaches_the_exact_minimum():
    with jax.enable_x64(True):
        n, d = 6000, 4
        A, b = instance(0, n=n, d=d)
        w, x0 = np.full(n, 1 / n), 0.3 * np.ones(d)
        options = {"weights": w, "x0": x0, "key": jax.random.key(0), "tolerance": 1e-9}
        exact = softmax_regression.sampled_newton(A, b, num_sampled=n, **options)
        assert bool(exact.converged)
        assert int(exact.num_iterations) <= 12
        slope = softmax_regression.gradient(A, exact.x, b, weights=w)
        first = softmax_regression.gradient(A, x0, b, weights=w)
        assert np.linalg.norm(slope) <= 1.01e-9 * np.linalg.norm(first)
        np.testing.assert_allclose(
            exact.loss, softmax_regression.loss(A, exact.x, b, weights=w), rtol=1e-12
        )
        one = softmax_regression.sampled_newton(A, b, num_sampled=n, max_iterations=1, **options)
        values, vectors = np.linalg.eigh(softmax_regression.hessian(A, x0, b, weights=w))
        step = -vectors @ ((vectors.T @ np.asarray(first)) / np.abs(values))
        moved = (np.asarray(one.x) - x0) @ step / (step @ step)  # a power of 1/2: a damped step
        np.testing.assert_allclose(moved, 2.0 ** round(np.log2(moved)), rtol=1e-9)
        np.testing.assert_allclose(one.x, x0 + moved * step, rtol=1e-9)
        sampled = softmax_regression.sampled_newton(A, b, num_sampled=2000, **options)
        assert bool(sampled.converged)
        assert int(sampled.num_iterations) <= 25  # a wrong scale of the sample takes more
        np.testing.assert_allclose(sampled.x, exact.x, atol=1e-6)
        few = softmax_regression.sampled_newton(A, b, num_sampled=5, max_iterations=3, **options)
        assert not bool(few.converged)
        with pytest.raises(ValueError, match="sampled_newton: num_sampled must be an integer >= 1"):
            softmax_regression.sampled_newton(A, b, num_sampled=0, key=jax.random.key(0))


def test_refuses_bad_arguments():
    A, b = instance(0)
    with pytest.raises(ValueError, match="newton: max_iterations must be an integer >= 1"):
        softmax_regression.newton(A, b, max_iterations=0)
    with pytest.raises(ValueError, match="independent columns"):
        softmax_regression.convex_weights(np.ones((3, 2)), np.ones(3) / 3, strong_convexity=1.0)
    with pytest.raises(ValueError, match="gradient_descent: learning_rate must be finite and > 0"):
        softmax_regression.gradient_descent(A, b, num_steps=2, learning_rate=-1.0)
    with pytest.raises(ValueError, match="spectrum_bounds: b must be a vector"):
        softmax_regression.spectrum_bounds(A)
    with pytest.raises(ValueError, match="newton: A holds"):
        softmax_regression.newton(np.full((3, 2), np.inf), np.ones(3) / 3)
