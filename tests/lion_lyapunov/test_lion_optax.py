"""Lion-K beside the optax optimizers that it contains, and inside optax's wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lion_lyapunov import (
    cautious_lion_k,
    kappas,
    lion,
    lion_k,
    lion_k_groups,
    muon,
    normalized_sgd,
    scale_by_lion_k,
    scion,
    signum,
)

SHAPES = {"w": (4, 3), "b": (3,), "s": ()}


def tree(seed, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), dtype) for name, shape in SHAPES.items()
    }


def gradient(params, step):
    noise = tree(1000 + step, jax.tree.leaves(params)[0].dtype)
    return jax.tree.map(lambda p, n: 0.3 * p + n, params, noise)


def run(optimizer, params, steps, *, jit=False):
    update = jax.jit(optimizer.update) if jit else optimizer.update
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(
            np.asarray(x, np.float32).view(np.int32), np.asarray(y, np.float32).view(np.int32)
        )


def assert_close(a, b):  # eager and jit differ by the fusing of one multiplication
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


# A hundred eager steps take a second; two of the eight eager combinations are in the fast tier.
COMBINATIONS = [
    pytest.param(
        dtype,
        jit,
        mu_dtype,
        scheduled,
        marks=[] if jit or (mu_dtype is None and scheduled) else pytest.mark.slow,
    )
    for dtype in (jnp.float32, jnp.bfloat16)
    for jit in (False, True)
    for mu_dtype in (None, jnp.bfloat16)
    for scheduled in (False, True)
]


@pytest.mark.parametrize(("dtype", "jit", "mu_dtype", "scheduled"), COMBINATIONS)
def test_l1_is_optax_lion_bit_for_bit(dtype, jit, mu_dtype, scheduled):
    decay = optax.linear_schedule(0.3, 0.05, 60) if scheduled else 0.2
    rate = optax.cosine_decay_schedule(0.02, 100) if scheduled else 0.01
    ours = lion_k(rate, kappas.l1(), b1=0.9, b2=0.99, weight_decay=decay, mu_dtype=mu_dtype)
    theirs = optax.lion(rate, 0.9, 0.99, weight_decay=decay, mu_dtype=mu_dtype)
    params, state = run(ours, tree(0, dtype), 100, jit=jit)
    expected, expected_state = run(theirs, tree(0, dtype), 100, jit=jit)
    assert_same_bits(params, expected)
    assert_same_bits(optax.tree.get(state, "mu"), optax.tree.get(expected_state, "mu"))


@pytest.mark.parametrize(
    ("kappa", "options"),
    [
        (kappas.huber(1.0), {"mode": "refined"}),
        (kappas.log_cosh(1.0), {"mode": "smooth"}),
        (kappas.log_cosh(3.0), {"mode": "smooth", "smooth_beta": 3.0}),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_huber_and_log_cosh_are_modes_of_optax_bit_for_bit(kappa, options, dtype, jit):
    ours = optax.chain(scale_by_lion_k(kappa, b1=0.9, b2=0.99), optax.scale(-0.05))
    theirs = optax.chain(optax.scale_by_lion(0.9, 0.99, **options), optax.scale(-0.05))
    params, state = run(ours, tree(0, dtype), 30, jit=jit)
    expected, expected_state = run(theirs, tree(0, dtype), 30, jit=jit)
    assert_same_bits(params, expected)
    assert_same_bits(state[0].mu, expected_state[0].mu)


def test_named_lion_takes_the_arguments_of_optax():
    mask = {"w": True, "b": False, "s": False}
    ours = run(lion(0.01, 0.9, 0.98, None, 0.1, mask), tree(0), 20)[0]
    theirs = run(optax.lion(0.01, 0.9, 0.98, None, 0.1, mask), tree(0), 20)[0]
    assert_same_bits(ours, theirs)


def test_signum_is_the_sign_of_an_average():
    theirs = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(-0.01))
    assert_same_bits(run(signum(0.01), tree(0), 30)[0], run(theirs, tree(0), 30)[0])


def test_normalized_sgd_is_one_norm_for_the_whole_model():
    theirs = optax.chain(optax.normalize_by_update_norm(), optax.scale(-0.1))
    ours = run(normalized_sgd(0.1), tree(0), 10)[0]
    expected = run(theirs, tree(0), 10)[0]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_injected_hyperparameters_change_the_step_without_recompiling():
    injected = optax.inject_hyperparams(lion_k)(
        learning_rate=0.01, kappa=kappas.l1(), b1=0.9, b2=0.99, weight_decay=0.1
    )
    plain = lion_k(0.01, kappas.l1(), weight_decay=0.1)
    update = jax.jit(injected.update)
    params, state = tree(0), injected.init(tree(0))
    grads = gradient(params, 0)
    updates, state = update(grads, state, params)
    expected, plain_state = plain.update(grads, plain.init(params), params)
    assert_close(updates, expected)
    state.hyperparams["learning_rate"] = jnp.float32(0.02)
    updates, _ = update(grads, state, params)
    expected, _ = lion_k(0.02, kappas.l1(), weight_decay=0.1).update(grads, plain_state, params)
    assert_close(updates, expected)
    assert update._cache_size() == 1


def test_scheduled_b1_through_inject_hyperparams():
    injected = optax.inject_hyperparams(lion_k)(
        learning_rate=0.01,
        kappa=kappas.l1(),
        b1=lambda step: jnp.where(step == 0, 0.0, 0.9),
        b2=0.99,
    )
    params = tree(0)
    updates, _ = injected.update(gradient(params, 0), injected.init(params), params)
    assert_same_bits(
        jax.tree.map(jnp.sign, updates),
        jax.tree.map(lambda g: -jnp.sign(g), gradient(params, 0)),
    )


def test_multi_steps_averages_before_the_kappa():
    inner = lion_k(0.01, kappas.l1(), weight_decay=0.1)
    accumulating = optax.MultiSteps(inner, every_k_schedule=2)
    params = tree(0)
    state = accumulating.init(params)
    first, second = gradient(params, 0), gradient(params, 1)
    skipped, state = accumulating.update(first, state, params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(skipped))
    updates, _ = accumulating.update(second, state, params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert_close(updates, inner.update(mean, inner.init(params), params)[0])


def test_masked_and_partitioned_leaves_each_get_their_kappa():
    params, grads = tree(0), gradient(tree(0), 0)
    groups = lion_k_groups(
        0.1,
        {"matrix": kappas.frobenius(), "rest": kappas.l1()},
        {"w": "matrix", "b": "rest", "s": "rest"},
        weight_decay={"matrix": 0.0, "rest": 0.5},
    )
    updates, _ = jax.jit(groups.update)(grads, groups.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * grads["w"] / np.linalg.norm(grads["w"]), 1e-6)
    np.testing.assert_allclose(
        updates["b"], -0.1 * (np.sign(grads["b"]) + 0.5 * np.asarray(params["b"])), rtol=1e-6
    )
    masked = optax.masked(lion_k(0.1, kappas.l1()), {"w": True, "b": False, "s": False})
    updates, _ = masked.update(grads, masked.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * np.sign(grads["w"]))
    np.testing.assert_array_equal(updates["b"], grads["b"])
    with pytest.raises(ValueError, match="weight_decay needs the labels"):
        lion_k_groups(0.1, {"a": kappas.l1()}, "a", weight_decay={"b": 1.0})


def test_scan_and_vmap_give_what_a_loop_gives():
    optimizer = lion_k(0.02, kappas.lp(1.5), weight_decay=0.1)

    def train(params):
        def step(carry, index):
            params, state = carry
            updates, state = optimizer.update(
                jax.tree.map(lambda p: p - 1.0 + 0.1 * index, params), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(5.0))[0][0]

    stack = jax.tree.map(lambda a, b: jnp.stack([a, b]), tree(0), tree(1))
    together = jax.jit(jax.vmap(train))(stack)
    for seed in (0, 1):
        alone = train(tree(seed))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[seed], b, rtol=1e-5, atol=1e-6)


def test_state_is_one_buffer_and_sharding_is_kept():
    params = {"w": jnp.ones((8, 4))}
    optimizer = lion_k(0.1, kappas.l1(), weight_decay=0.1)
    state = optimizer.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 32
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = jax.device_put(params, split)
    state = jax.jit(optimizer.init, out_shardings=split)(params)
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert updates["w"].sharding.is_equivalent_to(split, 2)
    assert state[0].mu["w"].sharding.is_equivalent_to(split, 2)


def test_muon_and_scion_respect_their_constraint_in_the_operator_norm():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.zeros(3)}
    grads = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.ones(3)}
    for optimizer, bound in [
        (muon(0.1, weight_decay=2.0), 0.5),
        (scion(0.2, radius=3.0), 3.0 * np.sqrt(4 / 6)),
    ]:
        current, state = params, optimizer.init(params)
        update = jax.jit(optimizer.update)
        for _ in range(120):
            updates, state = update(grads, state, current)
            current = optax.apply_updates(current, updates)
        norms = np.linalg.svd(current["w"])[1]
        assert norms[0] <= bound * (1 + 1e-5)
        assert norms[-1] >= 0.75 * bound  # a constant gradient pushes to the boundary


@pytest.mark.parametrize(
    ("formula", "options", "expected"),
    [
        ("c_optim", {}, [3 * 1 / 3, 3 * 1 / 3, 0.0]),
        ("timm", {}, [1.5, 1.5, 0.0]),
        ("lion_pytorch", {"factor": 0.25}, [1 / 0.75, 1 / 0.75, -0.25 / 0.75]),
    ],
)
def test_cautious_formulas(formula, options, expected):
    optimizer = cautious_lion_k(1.0, kappas.l1(), b1=0.9, formula=formula, **options)
    params = jnp.zeros(3)
    state = optimizer.init(params)
    # The momentum says (+, +, -); the current gradient disagrees in the last place alone.
    _, state = optimizer.update(100 * jnp.array([1.0, 1.0, -1.0]), state, params)
    updates, _ = optimizer.update(jnp.array([1.0, 2.0, 1e-3]), state, params)
    np.testing.assert_allclose(updates, -np.asarray(expected), rtol=1e-6)


def test_cautious_decay_never_pulls_against_the_update():
    optimizer = cautious_lion_k(
        0.1, kappas.l1(), weight_decay=0.5, cautious_update=False, cautious_decay=True
    )
    params = jnp.array([2.0, -2.0])
    updates, _ = optimizer.update(jnp.array([1.0, 1.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 * (1.0 + 1.0), -0.1])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: lion_k(0.1, kappas.l1(), b1=1.1), "b1 must be in"),
        (lambda: lion_k(0.1, kappas.l1(), b2=float("nan")), "b2 must be a number, got NaN"),
        (lambda: lion_k(-0.1, kappas.l1()), "learning_rate must be a finite number >= 0"),
        (lambda: lion_k(0.1, kappas.l1(), weight_decay=float("inf")), "weight_decay must be"),
        (lambda: cautious_lion_k(0.1, kappas.l1(), formula="x"), "one of c_optim, timm"),
        (lambda: scion(0.1, radius=0.0), "radius must be"),
    ],
)
def test_bad_settings_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_function_is_not_a_kappa():
    with pytest.raises(TypeError, match="must come from lion_lyapunov"):
        lion_k(0.1, jnp.sign)


def test_empty_trees_none_leaves_and_nan():
    optimizer = lion_k(0.1, kappas.l1(), weight_decay=0.1)
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}
    with_none = {"a": jnp.ones(2), "b": None}
    assert optimizer.update(with_none, optimizer.init(with_none), with_none)[0]["b"] is None
    params = jnp.zeros(2)
    updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), optimizer.init(params), params)
    np.testing.assert_array_equal(np.isnan(updates), [True, False])
    assert np.isnan(state[0].mu[0])
