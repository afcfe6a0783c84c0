"""The SAM family beside formulas in NumPy, and what must hold of every gradient rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import sam_free

RNG = np.random.default_rng(5)
ROWS, WIDTH = 16, 3
DESIGN = RNG.normal(size=(ROWS, WIDTH))
TARGET = RNG.normal(size=ROWS)
START = RNG.normal(size=WIDTH)
INDEX = np.arange(ROWS)


def loss_fn(params, batch):
    """Mean of a quartic: its gradient is not linear, so a perturbation shows in full."""
    error = batch["x"] @ params["w"] - batch["y"]
    outputs = sam_free.Outputs(
        error[:, None], {"mean": jnp.mean(error)}, {"error": jnp.mean(error)}
    )
    return jnp.mean(error**4), outputs


def gradient(w, rows=INDEX):
    error = DESIGN[rows] @ w - TARGET[rows]
    return 4 * DESIGN[rows].T @ error**3 / len(rows)


def data():
    return {"w": jnp.asarray(START)}, {"x": jnp.asarray(DESIGN), "y": jnp.asarray(TARGET)}


def unit(v):
    return v / np.linalg.norm(v)


def sam(w, rho, rows=INDEX):
    return gradient(w + rho * unit(gradient(w, rows)), rows)


def asam(w, rho, eta):
    scale = np.abs(w) + eta
    g = gradient(w)
    return gradient(w + rho * scale**2 * g / np.linalg.norm(scale * g))


def grouped(w, rho, size):
    groups = INDEX.reshape(-1, size)
    return np.mean([sam(w, rho, rows) for rows in groups], axis=0)


def gsam(w, rho, alpha):
    g, s = gradient(w), sam(w, rho)
    return s - alpha * (g - g @ unit(s) * unit(s))


FORMULAS = {
    "sam": (functools.partial(sam_free.sam_gradient, rho=0.7), sam(START, 0.7)),
    "asam": (
        functools.partial(sam_free.sam_gradient, rho=0.7, adaptive=True, eta=0.05),
        asam(START, 0.7, 0.05),
    ),
    "m-sam": (
        functools.partial(sam_free.sam_gradient, rho=0.7, group_size=4),
        grouped(START, 0.7, 4),
    ),
    "gsam": (functools.partial(sam_free.gsam_gradient, rho=0.7, alpha=0.4), gsam(START, 0.7, 0.4)),
    "looksam": (functools.partial(sam_free.looksam_gradient, rho=0.7), sam(START, 0.7)),
    "esam": (
        functools.partial(sam_free.esam_gradient, rho=0.7, beta=1.0, gamma=1.0),
        sam(START, 0.7),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_one_step_is_the_formula(name):
    rule, expected = FORMULAS[name]
    with jax.enable_x64(True):
        params, batch = data()
        (loss, outputs), grads = rule(loss_fn)(params, batch)
        np.testing.assert_allclose(grads["w"], expected, rtol=1e-12)
        assert np.linalg.norm(expected - gradient(START)) > 0.1 * np.linalg.norm(expected)
        # the value, the outputs and the statistics are those of the unperturbed pass
        error = DESIGN @ START - TARGET
        np.testing.assert_allclose(loss, np.mean(error**4), rtol=1e-12)
        np.testing.assert_allclose(outputs.logits[:, 0], error, rtol=1e-12)
        np.testing.assert_allclose(outputs.model_state["mean"], error.mean(), rtol=1e-12)


def test_looksam_reuses_the_part_across_for_the_rest_of_the_period():
    w, alpha, rate, period = START, 0.6, 0.002, 3
    across = None
    with jax.enable_x64(True):
        params, batch = data()
        rule = sam_free.looksam_gradient(loss_fn, rho=0.5, alpha=alpha, period=period)
        step = jax.jit(rule)
        state = rule.init(params)
        for count in range(8):
            g = gradient(w)
            if count % period == 0:
                expected = sam(w, 0.5)
                across = expected - expected @ unit(g) * unit(g)
            else:
                expected = g + alpha * np.linalg.norm(g) * unit(across)
            _, grads, state = step(params, batch, state)
            np.testing.assert_allclose(grads["w"], expected, rtol=1e-10)
            w = w - rate * expected
            params = {"w": params["w"] - rate * grads["w"]}


def quartic(aux, batch):
    return aux.logits[:, 0] ** 4


def test_esam_takes_the_examples_whose_loss_grew_most():
    there = START + 0.7 * unit(gradient(START))
    before, after = ((DESIGN @ w - TARGET) ** 4 for w in (START, there))
    chosen = np.argsort(before - after)[: ROWS // 4]
    with jax.enable_x64(True):
        params, batch = data()
        rule = sam_free.esam_gradient(loss_fn, rho=0.7, beta=1.0, gamma=0.25, example_loss=quartic)
        grads = rule(params, batch)[1]
        np.testing.assert_allclose(grads["w"], gradient(there, chosen), rtol=1e-12)


def test_esam_perturbs_each_entry_with_probability_beta():
    # On a linear loss after one pass the perturbed point can be read off a quadratic's gradient.
    size, beta, rho = 4000, 0.6, 2.0

    def half_square(params, batch):
        return jnp.sum(params["w"] ** 2) / 2, batch["x"]

    params = {"w": jnp.ones(size)}
    rule = sam_free.esam_gradient(half_square, rho=rho, beta=beta, gamma=1.0, key=jax.random.key(0))
    moved = rule(params, {"x": jnp.zeros(1)})[1]["w"] - 1
    hit = np.asarray(moved) != 0
    assert abs(hit.mean() - beta) < 4 * np.sqrt(beta * (1 - beta) / size)
    np.testing.assert_allclose(moved[hit], rho / beta / np.sqrt(size), rtol=1e-4)
    again = rule(params, {"x": jnp.zeros(1)}, rule.init(params) + 1)[1]["w"] - 1
    assert (np.asarray(again) != 0).tolist() != hit.tolist()  # other entries in the next step
    with pytest.raises(ValueError, match="needs a key"):
        sam_free.esam_gradient(half_square, rho=rho, beta=beta)


RULES = {
    "sam": sam_free.sam_gradient,
    "asam": functools.partial(sam_free.sam_gradient, adaptive=True),
    "m-sam": functools.partial(sam_free.sam_gradient, group_size=4),
    "gsam": sam_free.gsam_gradient,
    "looksam": sam_free.looksam_gradient,
    "esam": functools.partial(sam_free.esam_gradient, beta=1.0, example_loss=quartic),
}


@pytest.mark.parametrize("name", RULES)
def test_a_zero_gradient_gives_zero(name):
    rule = RULES[name](loss_fn, rho=0.3)
    params, batch = data()
    at_rest = batch | {"y": batch["x"] @ params["w"]}
    assert not np.asarray(rule(params, at_rest)[1]["w"]).any()
    if hasattr(rule, "init"):
        state = rule.init(params)
        for _ in range(2):
            _, grads, state = rule(params, at_rest, state)
            assert not np.asarray(grads["w"]).any()


@pytest.mark.parametrize("name", RULES)
def test_without_a_radius_the_base_gradient_remains_bit_for_bit_and_costs_the_same(name):
    params, batch = data()
    plain = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)).lower(params, batch).compile()
    rule = jax.jit(RULES[name](loss_fn, rho=0.0)).lower(params, batch).compile()
    np.testing.assert_array_equal(rule(params, batch)[1]["w"], plain(params, batch)[1]["w"])
    assert rule.cost_analysis()["flops"] == plain.cost_analysis()["flops"]


@pytest.mark.parametrize(
    "group_size", [4, None, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 2, 8, 16))]
)
def test_groups_do_not_depend_on_the_devices(group_size):
    with jax.enable_x64(True):
        params, batch = data()
        expected = grouped(START, 0.7, group_size or ROWS)
        for count in (1, 2, 8):
            mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))

            def share(params, batch):
                rule = sam_free.sam_gradient(
                    loss_fn, rho=0.7, group_size=group_size, axis_name="data"
                )
                own = jax.lax.pcast(params, "data", to="varying")
                return jax.lax.pmean(rule(own, batch)[1], "data")

            mapped = jax.shard_map(
                share,
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("data")),
                out_specs=PartitionSpec(),
            )
            np.testing.assert_allclose(jax.jit(mapped)(params, batch)["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["gsam", "looksam"])
def test_gsam_and_looksam_over_devices(name):
    expected = FORMULAS[name][1]
    with jax.enable_x64(True):
        params, batch = data()
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        rule = functools.partial(FORMULAS[name][0], axis_name="data")(loss_fn)

        def share(params, batch):
            own = jax.lax.pcast(params, "data", to="varying")
            if hasattr(rule, "init"):
                _, grads, state = rule(own, batch, rule.init(params))
                return jax.lax.pmean((grads, state.across), "data")[0]
            return jax.lax.pmean(rule(own, batch)[1], "data")

        mapped = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
        )
        np.testing.assert_allclose(jax.jit(mapped)(params, batch)["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 8])
def test_esam_chooses_in_groups_whatever_the_devices(count):
    there = START + 0.7 * unit(gradient(START))
    growth = (DESIGN @ there - TARGET) ** 4 - (DESIGN @ START - TARGET) ** 4
    chosen = [max(pair, key=lambda i: growth[i]) for pair in INDEX.reshape(-1, 2)]
    with jax.enable_x64(True):
        params, batch = data()
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
        rule = sam_free.esam_gradient(
            loss_fn, rho=0.7, beta=1.0, gamma=0.5, example_loss=quartic, group_size=2,
            axis_name="data",
        )  # fmt: skip

        def share(params, batch):
            own = jax.lax.pcast(params, "data", to="varying")
            return jax.lax.pmean(rule(own, batch)[1], "data")

        mapped = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
        )
        found = jax.jit(mapped)(params, batch)["w"]
        np.testing.assert_allclose(found, gradient(there, np.array(chosen)), rtol=1e-12)


def test_a_scheduled_radius_advances_once_per_step():
    schedule = optax.linear_schedule(0.0, 0.8, 4)
    rule = sam_free.scheduled(sam_free.sam_gradient, schedule)(loss_fn)
    with jax.enable_x64(True):
        params, batch = data()
        state, step = rule.init(params), jax.jit(rule)
        for rho in (0.0, 0.2, 0.4):
            _, grads, state = step(params, batch, state)
            np.testing.assert_allclose(grads["w"], sam(START, rho), rtol=1e-6)
    assert int(state) == 3


def test_groups_that_do_not_fit_are_refused():
    params, batch = data()
    with pytest.raises(ValueError, match="group_size=5 must divide a device's share"):
        sam_free.sam_gradient(loss_fn, rho=0.1, group_size=5)(params, batch)
    with pytest.raises(ValueError, match="rho must be a finite number >= 0, got -1"):
        sam_free.sam_gradient(loss_fn, rho=-1)
    with pytest.raises(ValueError, match="period must be a whole number >= 1, got 0"):
        sam_free.looksam_gradient(loss_fn, rho=0.1, period=0)
