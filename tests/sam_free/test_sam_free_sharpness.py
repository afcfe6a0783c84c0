"""Sharpness beside a dense float64 Hessian, closed forms and repeated draws."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sam_free import sharpness

RNG = np.random.default_rng(1)
EXAMPLES, FEATURES, UNITS, CLASSES = 48, 5, 6, 3
IMAGES = RNG.normal(size=(EXAMPLES, FEATURES))
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
PARAMS = {"a": RNG.normal(size=(FEATURES, UNITS)), "b": RNG.normal(size=(UNITS, CLASSES))}
KEY = 0


def outputs(params, batch):
    return jnp.tanh(batch["image"] @ params["a"]) @ params["b"]


def output_loss(logits, batch):
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
    return -jnp.mean(own)


LOSS = sharpness.split_loss(outputs, output_loss)


def steep(params, batch):
    """The same loss turned over and scaled: its most negative eigenvalue is the largest."""
    return -2 * LOSS(params, batch)


def cut(size):
    return [
        {
            "image": jnp.asarray(IMAGES[i : i + size]),
            "label": jnp.asarray(LABELS[i : i + size], jnp.int32),
        }
        for i in range(0, EXAMPLES, size)
    ]


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


@pytest.fixture(scope="module")
def dense():
    """The Hessian and Gauss-Newton matrix of LOSS as arrays, from a Jacobian by hand."""
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(params())
        whole = cut(EXAMPLES)[0]
        hessian = jax.hessian(lambda v: LOSS(unravel(v), whole))(flat)
        jacobian = np.asarray(jax.jacobian(lambda v: outputs(unravel(v), whole))(flat))
        logits = np.asarray(outputs(params(), whole))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    middle = np.einsum("ni,ij->nij", p, np.eye(CLASSES)) - np.einsum("ni,nj->nij", p, p)
    gauss_newton = np.einsum("nia,nij,njb->ab", jacobian, middle, jacobian) / EXAMPLES
    return types.SimpleNamespace(hessian=np.asarray(hessian), gauss_newton=gauss_newton)


def expected_values(matrix, which, k):
    values = np.linalg.eigvalsh(matrix)
    order = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    return values[np.argsort(order)][:k]


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenvalues_equal_the_dense_hessian(dense, which):
    with jax.enable_x64(True):
        found = sharpness.top_eigenvalues(
            steep, params(), cut(20), k=3, which=which, num_iters=30, key=jax.random.key(KEY)
        )
        truth = expected_values(-2 * dense.hessian, which, 3)
        if which == "LM":
            assert truth[0] < 0  # what power iteration would report as the largest
        np.testing.assert_allclose(found.value, truth, rtol=1e-4)
        assert np.all(np.abs(found.value - truth) <= found.error)
        vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(found.vectors))
        residual = -2 * dense.hessian @ vectors.T - vectors.T * np.asarray(found.value)
        np.testing.assert_allclose(np.linalg.norm(residual, axis=0), found.error, atol=1e-9)


@pytest.mark.parametrize(
    "num_iters", [12, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))]
)
def test_the_error_bar_covers_the_truth_before_convergence(dense, num_iters):
    values = np.linalg.eigvalsh(dense.hessian)
    with jax.enable_x64(True):
        for seed in range(5):
            found = sharpness.top_eigenvalues(
                LOSS, params(), cut(20), num_iters=num_iters, key=jax.random.key(seed)
            )
            off = np.abs(values - np.asarray(found.value[0]))
            assert off.min() <= found.error[0]
            if num_iters >= 12:  # before that, it may be the second eigenvalue that is near
                assert off[-1] <= found.error[0]


def test_gauss_newton_and_float32(dense):
    truth = expected_values(dense.gauss_newton, "LA", 2)
    arguments = {"k": 2, "curvature": "gauss_newton", "num_iters": 30}
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), [b["image"] for b in cut(20)])
    batches = [{"image": x, "label": b["label"]} for x, b in zip(batches, cut(20))]
    found = sharpness.top_eigenvalues(LOSS, single, batches, key=jax.random.key(0), **arguments)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, truth, rtol=1e-4)
    with jax.enable_x64(True):
        found = sharpness.top_eigenvalues(
            LOSS, params(), cut(20), key=jax.random.key(0), **arguments
        )
        np.testing.assert_allclose(found.value, truth, rtol=1e-10)
        total = sharpness.trace(
            LOSS, params(), cut(20), num_samples=64, key=jax.random.key(1), curvature="gauss_newton"
        )
        total = jax.tree.map(float, total)
    whole = np.trace(dense.gauss_newton)
    assert abs(total.value - whole) < 4 * total.error < 0.4 * whole
    assert abs(np.trace(dense.hessian) - whole) > 5 * total.error  # not the Hessian's
    with pytest.raises(ValueError, match=r"pass loss_fn=sharpness\.split_loss"):
        sharpness.top_eigenvalues(steep, single, batches, key=jax.random.key(0), **arguments)


def test_a_space_that_ends_early_is_no_nan():
    def ridge(params, batch):
        return jnp.mean(batch["x"]) * (params["w"][0] ** 2 - 3 * params["w"][1] ** 2) / 2

    batch = {"x": jnp.ones(4)}
    found = sharpness.top_eigenvalues(
        ridge, {"w": jnp.zeros(50)}, [batch], k=2, num_iters=20, key=jax.random.key(0)
    )
    np.testing.assert_allclose(found.value, [1.0, 0.0], atol=1e-5)
    flat = sharpness.top_eigenvalues(
        lambda p, b: jnp.mean(b["x"]) * jnp.sum(p["w"]),
        {"w": jnp.zeros(50)},
        [batch],
        num_iters=20,
        key=jax.random.key(0),
    )
    assert float(flat.value[0]) == 0.0


def test_rounding_brings_back_no_eigenvalue_that_was_found():
    # Without re-orthogonalisation the large one comes back as a ghost, or the space ends there.
    spectrum = np.concatenate([[100.0, 1.0, -0.9], np.linspace(-0.5, 0.5, 197)])
    start = {"w": jnp.zeros(200)}

    def bowl(params, batch):
        return jnp.mean(batch["x"]) * jnp.sum(jnp.asarray(spectrum, "f") * params["w"] ** 2) / 2

    for which, truth in (("LA", [100.0, 1.0, 0.5]), ("SA", [-0.9])):
        found = sharpness.top_eigenvalues(
            bowl, start, {"x": jnp.ones(4)}, k=len(truth), which=which, num_iters=80,
            key=jax.random.key(3),
        )  # fmt: skip
        np.testing.assert_allclose(found.value, truth, rtol=1e-4)
        assert np.all(np.abs(np.asarray(found.value) - truth) <= found.error)


def test_hutchinson_is_calibrated(dense):
    truth = np.trace(dense.hessian)
    with jax.enable_x64(True):
        estimate = jax.vmap(
            lambda key: sharpness.trace(LOSS, params(), cut(EXAMPLES), num_samples=20, key=key)
        )
        found = jax.tree.map(np.asarray, estimate(jax.random.split(jax.random.key(2), 200)))
    scores = (found.value - truth) / found.error
    # Student's t with 19 degrees: its deviation is sqrt(19 / 17), its mean 0.
    assert abs(scores.mean()) < 4 / np.sqrt(200)
    assert abs(scores.std() - np.sqrt(19 / 17)) < 4 * 1.06 / np.sqrt(2 * 200)
    assert 0.88 < np.mean(np.abs(scores) < 2.093) <= 0.99  # 95 % of t_19; 4 deviations of 200


@pytest.mark.slow
def test_the_density_has_the_moments_of_the_matrix(dense):
    with jax.enable_x64(True):
        found = sharpness.spectral_density(
            LOSS, params(), cut(20), num_iters=30, num_samples=64, key=jax.random.key(0), width=0.02
        )
    found = jax.tree.map(np.asarray, found)
    mass = np.trapezoid(found.value, found.grid)
    first = np.trapezoid(found.value * found.grid, found.grid)
    np.testing.assert_allclose(mass, 1.0, atol=1e-3)
    values = np.linalg.eigvalsh(dense.hessian)
    sampled = np.asarray(np.sum(found.weights * found.nodes, axis=1))
    error = sampled.std(ddof=1) / 8
    assert abs(first - values.mean()) < 4 * error
    truth = np.exp(-(((np.asarray(found.grid)[:, None] - values) / 0.02) ** 2) / 2).mean(1)
    truth /= 0.02 * np.sqrt(2 * np.pi)
    seen = np.asarray(found.error) > 1e-3
    scores = (np.asarray(found.value) - truth)[seen] / np.asarray(found.error)[seen]
    assert np.mean(np.abs(scores) < 3) > 0.95


def numpy_loss(w, rows):
    logits = np.tanh(IMAGES[rows] @ w["a"]) @ w["b"]
    shifted = logits - logits.max(1, keepdims=True)
    log_q = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_q[np.arange(len(rows)), LABELS[rows]].mean()


def numpy_gradient(w, rows):
    hidden = np.tanh(IMAGES[rows] @ w["a"])
    logits = hidden @ w["b"]
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = (q - np.eye(CLASSES)[LABELS[rows]]) / len(rows)
    return {
        "a": IMAGES[rows].T @ ((slope @ w["b"].T) * (1 - hidden**2)),
        "b": hidden.T @ slope,
    }


def numpy_growth(rows, rho):
    g = numpy_gradient(PARAMS, rows)
    length = np.sqrt(sum(np.sum(x**2) for x in g.values()))
    there = {k: PARAMS[k] + rho * g[k] / length for k in g}
    return numpy_loss(there, rows) - numpy_loss(PARAMS, rows)


@pytest.mark.parametrize("size", [7, 16, EXAMPLES])
def test_sam_sharpness_does_not_depend_on_the_batches(size):
    rows = np.arange(EXAMPLES)
    groups = [numpy_growth(part, 0.3) for part in rows.reshape(-1, 8)]
    with jax.enable_x64(True):
        whole = sharpness.sam_sharpness(LOSS, params(), cut(size), rho=0.3)
        np.testing.assert_allclose(whole.value, numpy_growth(rows, 0.3), rtol=1e-10)
        grouped = sharpness.sam_sharpness(LOSS, params(), cut(size), rho=0.3, group_size=8)
        np.testing.assert_allclose(grouped.value, np.mean(groups), rtol=1e-10)
        np.testing.assert_allclose(grouped.error, np.std(groups, ddof=1) / 6**0.5, rtol=1e-8)
    with pytest.raises(ValueError, match="group_size=7 must divide the number of examples, 48"):
        sharpness.sam_sharpness(LOSS, params(), cut(16), rho=0.3, group_size=7)


@pytest.mark.slow
def test_measures_over_eight_devices_and_with_masks():
    with jax.enable_x64(True):
        key = jax.random.key(0)
        for devices in (None, jax.devices()):
            top = sharpness.top_eigenvalues(
                LOSS, params(), cut(16), num_iters=12, key=key, devices=devices
            )
            growth = sharpness.sam_sharpness(
                LOSS, params(), cut(16), rho=0.3, group_size=8, devices=devices
            )
            if devices is None:
                alone = (top.value, growth.value)
        np.testing.assert_allclose(top.value, alone[0], rtol=1e-10)
        np.testing.assert_allclose(growth.value, alone[1], rtol=1e-10)

        def masked(params, batch):
            logits = outputs(params, batch)
            own = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
            mask = batch["mask"].astype(own.dtype)
            return -jnp.sum(own[:, 0] * mask) / jnp.sum(mask)

        padded = [
            b | {"mask": jnp.arange(len(b["label"])) < (16 if i else 9)}
            for i, b in enumerate(cut(16))
        ]
        rows = np.concatenate([np.arange(9), np.arange(16, 48)])
        found = sharpness.sam_sharpness(masked, params(), padded, rho=0.3)
        np.testing.assert_allclose(found.value, numpy_growth(rows, 0.3), rtol=1e-10)


def test_noise_and_worst_case_on_a_quadratic():
    curvature = jnp.array([4.0, 1.0, -2.0])

    def bowl(params, batch):
        return jnp.mean(batch["x"]) * jnp.sum(curvature * params["w"] ** 2) / 2

    where, batch = {"w": jnp.array([1.0, -2.0, 0.0])}, [{"x": jnp.ones(2)}, {"x": jnp.ones(3)}]
    key = jax.random.key(1)
    sigma = 0.1
    plain = sharpness.average_sharpness(bowl, where, batch, sigma=sigma, num_samples=4000, key=key)
    assert abs(plain.value - sigma**2 * (4 + 1 - 2) / 2) < 4 * plain.error
    scaled = sharpness.average_sharpness(
        bowl, where, batch, sigma=sigma, adaptive=True, num_samples=4000, key=key
    )
    assert abs(scaled.value - sigma**2 * (4 * 1 + 1 * 4) / 2) < 4 * scaled.error
    # In the box |delta| <= rho |w| the worst corner is rho w itself.
    box = sharpness.worst_case_sharpness(bowl, where, batch, rho=0.1, p=np.inf)
    np.testing.assert_allclose(box.value, (1.1**2 - 1) * (4 + 4) / 2, rtol=1e-5)
    # In the ball: maximise over angles of the two coordinates that move.
    angle = np.linspace(0, 2 * np.pi, 200_001)
    first, second = 1 + 0.1 * np.cos(angle), -2 + 0.2 * np.sin(angle)
    truth = np.max(4 * first**2 + second**2) / 2 - 4
    ball = sharpness.worst_case_sharpness(bowl, where, batch, rho=0.1, num_steps=60)
    assert truth - ball.value < 1e-4 * truth
    assert ball.value <= truth * (1 + 1e-5)
    started = sharpness.worst_case_sharpness(bowl, where, batch, rho=0.1, num_steps=60, key=key)
    np.testing.assert_allclose(started.value, ball.value, rtol=1e-3)


def test_slices_pass_through_the_centre_and_scale_with_the_filters():
    with jax.enable_x64(True):
        key = jax.random.key(0)
        found = sharpness.loss_slice(
            LOSS, params(), cut(16), num_directions=2, num_points=5, key=key
        )
        np.testing.assert_allclose(found.value[2, 2], numpy_loss(PARAMS, np.arange(48)), rtol=1e-12)
        there = {k: PARAMS[k] - np.asarray(found.directions[0][k]) for k in PARAMS}
        np.testing.assert_allclose(found.value[0, 2], numpy_loss(there, np.arange(48)), rtol=1e-12)
        for name, direction in found.directions[1].items():
            np.testing.assert_allclose(
                np.linalg.norm(direction, axis=0), np.linalg.norm(PARAMS[name], axis=0), rtol=1e-12
            )
        own = sharpness.loss_slice(
            LOSS, params(), cut(16), num_points=3, directions=[found.directions[0]]
        )
        np.testing.assert_allclose(own.value[0], found.value[0, 2], rtol=1e-12)


class State(NamedTuple):
    params: dict


@pytest.mark.slow
def test_the_probe_measures_at_the_state():
    state = State(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS))
    single = [{"image": b["image"].astype(jnp.float32), "label": b["label"]} for b in cut(16)]
    key = jax.random.key(0)
    measures = ("lambda_max", "trace", "sam_sharpness", "gradient_norm")
    watch = sharpness.probe(lambda state: LOSS, single, key=key, measures=measures, num_iters=8)
    found = jax.jit(watch)(state, single[0])  # as the loop runs it
    growth = sharpness.sam_sharpness(LOSS, state.params, single, rho=0.05)
    np.testing.assert_allclose(found["sam_sharpness"], growth.value, rtol=1e-3)
    slopes = numpy_gradient(PARAMS, np.arange(48))
    length = np.sqrt(sum(np.sum(g**2) for g in slopes.values()))
    np.testing.assert_allclose(found["gradient_norm"], length, rtol=1e-5)
    assert {"lambda_max", "lambda_max_error", "trace", "trace_error"} <= set(found)
    with pytest.raises(ValueError, match="measures must be one of"):
        sharpness.probe(lambda state: LOSS, key=key, measures=("flatness",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda **a: sharpness.top_eigenvalues(**a, k=0), "k must be a whole number >= 1"),
        (lambda **a: sharpness.top_eigenvalues(**a, which="max"), "which must be one of 'LA'"),
        (lambda **a: sharpness.top_eigenvalues(**a, k=100, num_iters=5), "k=100 must be at most"),
        (lambda **a: sharpness.trace(**a, num_samples=0), "num_samples must be a whole number"),
        (lambda **a: sharpness.average_sharpness(**a, sigma=0.0), "sigma must be a finite"),
        (lambda **a: sharpness.worst_case_sharpness(**a, rho=1, p=1), "p must be 2 or math.inf"),
        (lambda **a: sharpness.loss_slice(**a, num_points=1), "num_points must be a whole number"),
    ],
)
def test_bad_arguments_are_named(call, message):
    arguments = {"loss_fn": LOSS, "params": PARAMS, "batches": cut(16), "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        call(**arguments)
    empty = arguments | {"batches": []}
    with pytest.raises(ValueError, match="batches is empty"):
        sharpness.top_eigenvalues(**empty)
