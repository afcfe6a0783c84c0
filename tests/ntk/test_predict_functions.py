"""Prediction against dense matrix functions, independent integrators and naive loops."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats

from ntk import predict


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def joint(seed, n, m, rank=None):
    a = normal(seed, n + m, rank or n + m + 2)
    k = a @ a.T / a.shape[1]
    return k[:n, :n], k[n:, :n], k[n:, n:]


def integral(kernel, tau):
    """int_0^tau exp(-K s) ds = K^-1 (1 - exp(-K tau)), by one exponential of a block matrix."""
    n = len(kernel)
    block = np.block([[-kernel, np.eye(n)], [np.zeros((n, n)), np.zeros((n, n))]])
    return scipy.linalg.expm(block * tau)[:n, n:]


@pytest.mark.parametrize("rank", [None, 3])
def test_squared_loss_matches_matrix_functions_also_for_singular_kernels(rank):
    dd, td, _ = joint(0, 6, 4, rank)
    y, f0, f1 = normal(1, 6, 2), normal(2, 6, 2), normal(3, 4, 2)
    times, rate = np.array([0.0, 0.7, 30.0, 4000.0]), 0.6
    with jax.enable_x64(True):
        state = jax.jit(predict.fit)(dd, y)
        compiled = jax.jit(predict.predict)
        train, test = compiled(state, times, f0, f1, td, learning_rate=rate)
        last_train, last_test = compiled(state, None, f0, f1, td)
        many = [
            compiled(state, t, None, 0.0, np.tile(td, (8, 1)), learning_rate=rate) for t in times
        ]
    for k, t in enumerate(times):
        tau = rate * t / y.size
        expected = y + scipy.linalg.expm(-dd * tau) @ (f0 - y)
        np.testing.assert_allclose(train[k], expected, atol=1e-11)
        np.testing.assert_allclose(test[k], f1 + td @ integral(dd, tau) @ (y - f0), atol=1e-11)
        # more test inputs than targets: the product is taken in another order
        np.testing.assert_allclose(many[k][-4:], td @ integral(dd, tau) @ y, atol=1e-11)
    np.testing.assert_array_equal(last_train, y)
    pseudo = f1 + td @ np.linalg.pinv(dd, rcond=1e-12) @ (y - f0)
    np.testing.assert_allclose(last_test, pseudo, atol=1e-10)


def test_null_directions_of_an_inconsistent_kernel_grow_linearly():
    # k(test, train) that sees a direction in which the training kernel vanishes: slope tau.
    with jax.enable_x64(True):
        state = predict.fit(np.diag([1.0, 0.0]), np.ones((2, 1)))
        found = predict.predict(state, 10.0, 0.0, 0.0, np.ones((1, 2)))[1]
    np.testing.assert_allclose(found, [[1 - np.exp(-5.0) + 5.0]], rtol=1e-14)


@pytest.mark.parametrize("kernel", [np.zeros((3, 3)), np.diag([1.0, 0.0, 1e-30])])
def test_singular_kernels_give_finite_numbers(kernel):
    y, cross = normal(4, 3, 2), kernel[:2]
    with jax.enable_x64(True):
        for t in (None, 0.0, 1e8, np.inf):
            out = predict.gradient_descent_mse(kernel, y)(t, 0.0, 0.0, cross)
            assert all(np.all(np.isfinite(a)) for a in out)
        found = predict.gp_inference(kernel, y)("nngp", cross, kernel[:2, :2])
    assert np.all(np.isfinite(found.mean))
    assert np.all(np.diag(found.covariance) >= 0.0)


def test_variances_are_never_negative():
    x = np.linspace(0, 1, 12)
    k = np.exp(-((x[:, None] - x[None, :]) ** 2) / 8)  # condition number beyond 1e16
    with jax.enable_x64(True):
        for reg in (0.0, 1e-14, 1e-8):
            found = predict.gp_inference(k, x[:, None], diag_reg=reg)("nngp", k, k)
            assert np.all(np.diag(found.covariance) >= 0.0)
            ensemble = predict.gradient_descent_mse_ensemble(
                lambda a, b, get: {"nngp": jnp.asarray(k), "ntk": jnp.asarray(k)},
                x,
                x[:, None],
                diag_reg=reg,
            )
            for t in (None, 1e3, np.inf):
                out = ensemble(t, x, "ntk", compute_cov=True)
                assert np.all(np.diagonal(out.covariance) >= 0.0)


def test_posterior_matches_conditional_gaussian():
    dd, td, tt = joint(5, 6, 4)
    y = normal(6, 6, 3)
    noisy = dd + 0.1 * np.trace(dd) / 6 * np.eye(6)
    with jax.enable_x64(True):
        found = predict.posterior(predict.fit(dd, y, diag_reg=0.1, method="cholesky"), td, tt)
    np.testing.assert_allclose(found.mean, td @ np.linalg.inv(noisy) @ y, atol=1e-12)
    np.testing.assert_allclose(found.covariance, tt - td @ np.linalg.inv(noisy) @ td.T, atol=1e-12)


def test_ensembles_match_matrix_functions_at_a_finite_time():
    (dd, td, _), (gg, tg, tt) = joint(34, 6, 4), joint(35, 6, 4)
    y, rate, t = normal(36, 6, 2), 0.4, 9.0

    def kernel_fn(a, b, get):
        ntk, nngp = {(6, 6): (dd, gg), (4, 6): (td, tg), (4, 4): (tt, tt)}[
            len(a), len(a if b is None else b)
        ]
        return collections.namedtuple("Pair", get)(*({"ntk": ntk, "nngp": nngp}[k] for k in get))

    with jax.enable_x64(True):
        predict_fn = predict.gradient_descent_mse_ensemble(kernel_fn, np.zeros(6), y, rate)
        found = predict_fn(t, np.zeros(4), None, compute_cov=True)
    tau = rate * t / y.size
    shrink = td @ integral(dd, tau)
    np.testing.assert_allclose(found.ntk.mean, shrink @ y, atol=1e-11)
    covariance = tt + shrink @ gg @ shrink.T - shrink @ tg.T - tg @ shrink.T
    np.testing.assert_allclose(found.ntk.covariance, covariance, atol=1e-11)
    np.testing.assert_allclose(found.nngp.mean, tg @ integral(gg, tau) @ y, atol=1e-11)
    covariance = tt - tg @ integral(gg, 2 * tau) @ tg.T
    np.testing.assert_allclose(found.nngp.covariance, covariance, atol=1e-11)


def scipy_flow(gradient, dd, td, f0, f1, rate, momentum, time):
    """Function-space training by SciPy's DOP853 at 1e-13, written as one flat vector."""
    n, m = f0.size, f1.size

    def slope(_, z):
        g = gradient(z[:n].reshape(f0.shape))
        force = np.concatenate([(-dd @ g).ravel(), (-td @ g).ravel()])
        if momentum is None:
            return force
        return np.concatenate([z[n + m :], force - (1 - momentum) / rate**0.5 * z[n + m :]])

    start = np.concatenate([f0.ravel(), f1.ravel()])
    if momentum is not None:
        start = np.concatenate([start, np.zeros(n + m)])
    end = time * (rate if momentum is None else rate**0.5)
    out = scipy.integrate.solve_ivp(slope, (0, end), start, "DOP853", rtol=1e-13, atol=1e-13)
    z = out.y[:, -1]
    return z[:n].reshape(f0.shape), z[n : n + m].reshape(f1.shape)


@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_any_loss_matches_an_independent_integrator(momentum):
    dd, td, _ = joint(7, 5, 3)
    y, f0, f1 = np.eye(3)[[0, 1, 2, 0, 1]], normal(8, 5, 3), normal(9, 3, 3)

    def softmax_gradient(f):
        p = np.exp(f - f.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return (p * y.sum(1, keepdims=True) - y) / y.size

    times = [0.5, 4.0, 60.0]
    with jax.enable_x64(True):
        predict_fn = predict.gradient_descent(
            lambda f, y: -jnp.mean(jax.nn.log_softmax(f) * y), dd, y, 0.8, momentum
        )
        train, test = predict_fn(np.array(times), f0, f1, td)
    for k, t in enumerate(times):
        expected = scipy_flow(softmax_gradient, dd, td, f0, f1, 0.8, momentum, t)
        np.testing.assert_allclose(train[k], expected[0], atol=1e-8)
        np.testing.assert_allclose(test[k], expected[1], atol=1e-8)


@pytest.mark.slow
def test_flow_on_the_squared_loss_matches_the_closed_form_and_resumes():
    dd, td, _ = joint(10, 5, 3)
    y, f0, f1 = normal(11, 5, 2), normal(12, 5, 2), normal(13, 3, 2)

    def loss(f, y):
        return 0.5 * jnp.mean((f - y) ** 2)

    with jax.enable_x64(True):
        closed = predict.gradient_descent_mse(dd, y, 0.5)(np.array([7.0, 2.0]), f0, f1, td)
        predict_fn = predict.gradient_descent(loss, dd, y, 0.5)
        solved = predict_fn(np.array([7.0, 2.0]), f0, f1, td)  # not in order
        middle = predict_fn(2.0, predict.ODEState(f0, f1), None, td)
        last = predict_fn(5.0, middle, None, td)
        settled = predict_fn(None, f0, f1, td)
        exact = predict.gradient_descent_mse(dd, y, 0.5)(None, f0, f1, td)
    for a, b in zip(solved, closed):
        np.testing.assert_allclose(a, b, atol=1e-9)
    np.testing.assert_allclose(last.fx_train, closed[0][0], atol=1e-9)
    np.testing.assert_allclose(last.fx_test, closed[1][0], atol=1e-9)
    np.testing.assert_allclose(settled[0], exact[0], atol=1e-6)


def test_unbounded_training_is_reported():
    with pytest.raises(RuntimeError, match="did not reach"):
        predict.gradient_descent(
            lambda f, y: -jnp.sum(f * y), np.eye(2), np.ones((2, 1)), max_steps=50
        )(None)


@pytest.mark.parametrize("repeated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_predictions_differentiate_in_the_kernel(repeated):
    # By central differences, at distinct and at coinciding eigenvalues, where autodiff through
    # eigenvectors gives NaN.
    n = 4
    base = np.eye(n) if repeated else joint(14, n, 1)[0] + np.diag(np.arange(4.0))
    y, cross, direction = normal(15, n, 2), normal(16, 2, n), joint(17, n, 1)[0]

    def value(s, t):
        state = predict.fit(jnp.asarray(base) + s * direction, y)
        train, test = predict.predict(state, t, 0.1, 0.2, cross)
        return jnp.sum(jnp.sin(train)) + jnp.sum(test**2)

    with jax.enable_x64(True):
        compiled, gradient = jax.jit(value), jax.jit(jax.grad(value))
        for t in (0.0, 3.0, np.inf):
            slope = float(gradient(0.0, t))
            h = 1e-4
            values = [float(compiled(k * h, t)) for k in (-2, -1, 1, 2)]
            numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
            np.testing.assert_allclose(slope, numeric, rtol=1e-8, atol=1e-9)
        speed = float(jax.jit(jax.grad(value, argnums=1))(0.0, 3.0))
        numeric = (float(compiled(0.0, 3.001)) - float(compiled(0.0, 2.999))) / 0.002
        np.testing.assert_allclose(speed, numeric, rtol=1e-5)


def test_fit_and_predict_map_over_kernels():
    kernels = np.stack([joint(k, 4, 1)[0] for k in range(3)])
    y = normal(18, 4, 2)

    def both(kernel):
        return predict.predict(predict.fit(kernel, y), jnp.asarray([1.0, 2.0]))

    with jax.enable_x64(True):
        mapped = jax.jit(jax.vmap(both))(kernels)
        for kernel, found in zip(kernels, mapped):
            np.testing.assert_allclose(found, both(kernel), atol=1e-13)


def test_evidence_and_its_gradient():
    x, y = normal(19, 7, 2), normal(20, 7, 3)

    def kernel(scale):
        return jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, -1) / scale**2)

    def evidence(scale, method):
        state = predict.fit(
            kernel(scale), y, diag_reg=0.3, diag_reg_absolute_scale=True, method=method
        )
        return predict.log_marginal_likelihood(state)

    with jax.enable_x64(True):
        noisy = np.asarray(kernel(1.3)) + 0.3 * np.eye(7)
        expected = scipy.stats.multivariate_normal.logpdf(y.T, np.zeros(7), noisy).sum()
        compiled = jax.jit(evidence, static_argnums=1)
        for method in ("cholesky", "eigh"):
            np.testing.assert_allclose(compiled(1.3, method), expected, rtol=1e-12)
        slope = jax.jit(jax.grad(evidence), static_argnums=1)(1.3, "cholesky")
        numeric = (compiled(1.3 + 1e-5, "cholesky") - compiled(1.3 - 1e-5, "cholesky")) / 2e-5
        np.testing.assert_allclose(slope, numeric, rtol=1e-8)


def test_leave_one_out_matches_refits():
    dd = joint(21, 6, 1)[0] + 0.2 * np.eye(6)
    y = normal(22, 6, 2)
    with jax.enable_x64(True):
        found = predict.leave_one_out(predict.fit(dd, y, method="cholesky"))
    density = 0.0
    for k in range(6):
        rest = np.delete(np.arange(6), k)
        inverse = np.linalg.inv(dd[np.ix_(rest, rest)])
        mean = dd[k, rest] @ inverse @ y[rest]
        variance = dd[k, k] - dd[k, rest] @ inverse @ dd[rest, k]
        np.testing.assert_allclose(found.mean[k], mean, atol=1e-12)
        np.testing.assert_allclose(found.variance[k], variance, atol=1e-12)
        density += scipy.stats.norm.logpdf(y[k], mean, variance**0.5).sum()
    np.testing.assert_allclose(found.log_likelihood, density, rtol=1e-12)


@pytest.mark.parametrize("count", [5, 200])
def test_largest_eigenvalue_by_lanczos(count):
    dd = joint(23, count, 1)[0]
    with jax.enable_x64(True):
        found = predict.max_learning_rate(dd, y_train_size=3 * count, momentum=0.5)
        slope = jax.grad(lambda s: predict.top_eigenvalue(s * jnp.asarray(dd)))(2.0)
    top = np.linalg.eigvalsh(dd)[-1]
    np.testing.assert_allclose(found, 2 * 1.5 * 3 * count / top, rtol=1e-12)
    np.testing.assert_allclose(slope, top, rtol=1e-12)


def test_learning_rate_at_the_edge_is_the_edge():
    dd, y = joint(24, 6, 1)[0], normal(25, 6, 1)
    rate = float(predict.max_learning_rate(jnp.asarray(dd), y_train_size=6))
    for factor, diverges in ((0.98, False), (1.02, True)):
        f = np.zeros((6, 1))
        for _ in range(2000):
            f = f - factor * rate * dd @ (f - y) / y.size
        assert (np.linalg.norm(f - y) > 1e3) == diverges


def test_float32_stays_float32():
    dd, td, tt = (a.astype(np.float32) for a in joint(26, 5, 3))
    y = normal(27, 5, 2).astype(np.float32)
    outs = predict.gradient_descent_mse(dd, y)(np.float32(3.0), 0.0, 0.0, td)
    outs += (predict.gp_inference(dd, y)("nngp", td, tt).covariance,)
    assert all(out.dtype == jnp.float32 for out in outs)


def test_a_later_call_sees_its_own_start():
    # What was solved for one start is kept; another start, also one written in place, is not it.
    dd, td, _ = joint(28, 6, 3)
    y, f0, f1 = normal(29, 6, 2), normal(30, 6, 2), normal(31, 3, 2)
    with jax.enable_x64(True):
        predict_fn = predict.gradient_descent_mse(dd, y)
        for start in (f0, f0, 0.0, 0.5, None, f0):
            gap = y - (0.0 if start is None else start)
            found = predict_fn(None, start, f1, td)
            found = found if start is None else found[1]
            np.testing.assert_allclose(found, f1 + td @ np.linalg.solve(dd, gap), atol=1e-11)
            f0 += 0.25  # in place


def test_what_was_traced_is_not_kept():
    dd, td, tt = joint(32, 6, 3)
    y = normal(33, 6, 2)
    with jax.enable_x64(True):
        plain = predict.gradient_descent_mse(dd, y)
        process = predict.gp_inference(dd, y)
        for t in (None, 2.0):
            inside = jax.jit(lambda f1, t=t: plain(t, 0.0, f1, td))(jnp.zeros((3, 2)))
            outside = plain(t, 0.0, 0.0, td)
            np.testing.assert_allclose(inside[1], outside[1], atol=1e-12)
        points = np.linspace(-1, 1, 6)[:, None]

        def kernel_fn(a, b, get):
            gap = a - (a if b is None else b).T
            return collections.namedtuple("Pair", get)(*(jnp.exp(-(gap**2)) for _ in get))

        ensemble = predict.gradient_descent_mse_ensemble(kernel_fn, points, y, diag_reg=0.1)
        inside = jax.jit(lambda x: ensemble(None, x, "ntk"))(points[:3])
        np.testing.assert_allclose(inside, ensemble(None, points[:3], "ntk"), atol=1e-12)
        for prior in (None, tt):
            inside = jax.jit(lambda k, p=prior: process("nngp", k, p))(jnp.asarray(td))
            outside = process("nngp", td, prior)
            for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside)):
                np.testing.assert_allclose(a, b, atol=1e-12)


BAD = np.array([[1.0, 0.0, np.nan], [0.0, 1.0, 0.0], [np.nan, 0.0, np.inf]])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda k, y: predict.fit(BAD, y), "k_train_train must be finite, but 3 of its 9"),
        (lambda k, y: predict.fit(k, y * np.inf), "y_train"),
        (lambda k, y: predict.gradient_descent_mse(BAD, y), r"k_train_train.*index \(0, 2\)"),
        (lambda k, y: predict.gradient_descent_mse(k, y * np.nan), "y_train"),
        (lambda k, y: predict.gradient_descent_mse(k, y, np.nan), "learning_rate"),
        (lambda k, y: predict.gradient_descent_mse(k, y)(np.nan), "t must not be NaN"),
        (lambda k, y: predict.gradient_descent_mse(k, y)(1.0, 0.0, 0.0, BAD), "k_test_train"),
        (lambda k, y: predict.gradient_descent_mse(k, y)(1.0, y * np.nan), "fx_train_0"),
        (lambda k, y: predict.gradient_descent(jnp.sum, BAD, y), "k_train_train"),
        (lambda k, y: predict.gradient_descent(jnp.sum, k, y)(1.0, np.inf), "fx_train_or_state_0"),
        (lambda k, y: predict.gp_inference(BAD, y)("nngp", k), "k_train_train"),
        (lambda k, y: predict.gp_inference(k, y)("nngp", BAD), "k_test_train"),
        (lambda k, y: predict.gp_inference(k, y)("nngp", k, BAD), "k_test_test"),
        (lambda k, y: predict.posterior(predict.fit(k, y), k, BAD), "k_test_test"),
        (lambda k, y: predict.max_learning_rate(BAD), "ntk_train_train"),
        (
            lambda k, y: predict.gradient_descent_mse_ensemble(
                lambda a, b, get: dict.fromkeys(get, BAD), np.eye(3), y
            )(1.0, None, "ntk"),
            r"kernel_fn\(x_train, None\).ntk",
        ),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call(np.eye(3), np.ones((3, 2)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (50, 50), (99, 99)])
def test_one_bad_entry_of_a_large_kernel_is_refused(place, bad, dtype):
    """From 4,096 entries on, XLA's maximum on a CPU passes over NaN; the check may not."""
    kernel = np.eye(100, dtype=dtype)
    predict.gradient_descent_mse(kernel, np.ones((100, 1), dtype))
    kernel[place] = bad
    with pytest.raises(ValueError, match=f"1 of its 10000 entries.*{re.escape(str(place))}"):
        predict.gradient_descent_mse(kernel, np.ones((100, 1), dtype))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda k, y: predict.gradient_descent_mse(k, y, trace_axes=()), "Check trace_axes"),
        (lambda k, y: predict.gradient_descent_mse(k, y, diag_reg=-1.0), "diag_reg"),
        (lambda k, y: predict.gradient_descent_mse(k, y)(1.0, 0.0, 0.0), "k_test_train"),
        (lambda k, y: predict.gradient_descent_mse(k, y)(None, None), "both None"),
        (lambda k, y: predict.gradient_descent(jnp.sum, k, y)(1.0, None), "both None"),
        (lambda k, y: predict.fit(k, y, method="qr"), "'eigh' or 'cholesky'"),
        (lambda k, y: predict.predict(predict.fit(k, y, method="cholesky"), 1.0), "eigh"),
        (lambda k, y: predict.gp_inference(k, y)("mean"), "nngp, ntk, ntkgp"),
        (lambda k, y: predict.gradient_descent(jnp.sum, k, y, momentum=1.5), "momentum"),
        (lambda k, y: predict.gradient_descent(jnp.sum, k, y, rtol=2.0), "rtol"),
        (lambda k, y: predict.max_learning_rate(np.ones((2, 3))), "pairs of equal axes"),
    ],
)
def test_refusals_name_the_argument(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.eye(3), np.ones((3, 2)))
