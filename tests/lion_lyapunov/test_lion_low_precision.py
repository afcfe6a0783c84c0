"""Fewer bits: what they cost in bytes and signs, and that small steps are not lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lion_lyapunov import kappas as K
from lion_lyapunov import lion_k
from lion_lyapunov import low_precision as lp

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def test_stochastic_rounding_is_right_on_average_and_exact_on_bfloat16():
    x = jnp.full(200_000, 1.0 + 2.0**-10, jnp.float32)  # an eighth of the way to the next bf16
    out = np.asarray(lp.round_stochastically(x, jax.random.key(0)), np.float64)
    assert set(np.unique(out)) == {1.0, 1.0 + 2.0**-7}
    share = (out > 1).mean()
    assert abs(share - 0.125) <= 5 * np.sqrt(0.125 * 0.875 / x.size)
    exact = jnp.array([1.5, -0.0, jnp.inf, -jnp.inf, jnp.nan, 3.0], jnp.float32)
    kept = lp.round_stochastically(exact, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(kept, exact)


def decay_of(mu_dtype, b2, steps):
    optimizer = lion_k(0.1, K.l1(), b2=b2, mu_dtype=mu_dtype)
    params = jnp.zeros(4096)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.full(4096, 1 / (1 - b2)), state, params)

    def step(state, _):
        return optimizer.update(jnp.zeros(4096), state, params)[1], None

    state = jit(lambda s: jax.lax.scan(step, s, length=steps)[0])(state)
    return np.asarray(state[0].mu, np.float64).mean()


def test_a_bf16_momentum_forgets_only_with_stochastic_rounding():
    exact = 0.999**3000
    assert decay_of(jnp.bfloat16, 0.999, 3000) == 1.0  # rounding to nearest never lets go
    rounded = decay_of(lp.bfloat16(key=jax.random.key(0)), 0.999, 3000)
    assert abs(rounded - exact) <= 0.1 * exact


def test_bf16_parameters_follow_a_small_decay():
    # x decays from 10 to 1 with learning_rate * weight_decay = 0.001: the distance to the box
    # falls to 9 * 0.999^8000 = 0.003 in theory and stays 9 when rounded to nearest.
    params = jnp.full(512, 10.0, jnp.bfloat16)
    inner = lion_k(1e-3, K.l1(), weight_decay=1.0)

    def final(optimizer):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(-jnp.ones_like(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        return jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=8000)[0][0])(params)

    stuck = final(inner)
    assert float(stuck.astype(jnp.float32).mean()) == 10.0
    moved = final(lp.with_stochastic_rounding(inner, key=jax.random.key(0)))
    assert moved.dtype == jnp.bfloat16
    assert abs(float(moved.astype(jnp.float32).mean()) - 1.003) <= 0.02


def heavy_tailed(size, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_t(3, size=size), jnp.float32)


@pytest.mark.parametrize(
    ("stored", "bytes_bound", "flips_bound"),
    [
        (lp.int8(block=256), 1.02, 0.02),
        (lp.int8(block=64), 1.07, 0.02),
        (lp.int4(block=64), 0.57, 0.15),
    ],
)
def test_bytes_and_sign_flips_of_integer_momentum(stored, bytes_bound, flips_bound):
    size = 1 << 18
    momentum, grads = heavy_tailed(size, 0), heavy_tailed(size, 1)
    packed = stored.encode(momentum, None)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(packed))
    assert held / size == pytest.approx(stored.bytes_per_param)
    assert held / size <= bytes_bound
    seen = stored.decode(packed, grads)
    exact = np.sign(0.9 * momentum + 0.1 * grads)
    flips = np.mean(np.sign(0.9 * np.asarray(seen) + 0.1 * grads) != exact)
    assert flips <= flips_bound
    optimizer = lion_k(0.1, K.l1(), mu_dtype=stored)
    state = optimizer.init({"w": jnp.zeros(size)})
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / size <= bytes_bound


@pytest.mark.parametrize("make", [lp.int8, lp.int4])
def test_stochastic_codes_are_right_on_average(make):
    stored = make(block=4, key=jax.random.key(0))
    x = jnp.array([1.0, 0.013, -0.3, 0.0])
    seen = jax.vmap(lambda key: stored.decode(stored.encode(x, key), x))(
        jax.random.split(jax.random.key(1), 20_000)
    )
    error = np.asarray(seen.std(axis=0)) / np.sqrt(20_000)
    assert np.all(np.abs(np.asarray(seen.mean(axis=0) - x)) <= 5 * error + 1e-6)


@pytest.mark.parametrize(
    "stored",
    [
        lp.int4(block=4),
        lp.bfloat16(key=jax.random.key(0)),
        pytest.param(lp.int8(block=4), marks=pytest.mark.slow),
        pytest.param(lp.int8(key=jax.random.key(0)), marks=pytest.mark.slow),
    ],
    ids=["int4", "bfloat16", "int8", "int8_stochastic"],
)
def test_formats_keep_shapes_dtypes_and_odd_sizes(stored):
    params = {"w": jnp.ones((3, 5)), "s": jnp.ones(()), "h": jnp.ones(7, jnp.bfloat16)}
    optimizer = lion_k(0.1, K.l1(), b2=0.5, mu_dtype=stored)

    def step(params):
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state, after

    new, state, after = jit(step)(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for name, leaf in params.items():
        assert new[name].shape == leaf.shape
        assert new[name].dtype == leaf.dtype
        np.testing.assert_allclose(new[name].astype(jnp.float32), 0.9, rtol=1e-2)


def test_a_quantised_run_ends_in_the_box():
    optimizer = lion_k(0.01, K.l1(), weight_decay=2.0, mu_dtype=lp.int8(block=32))

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(x - 3.0, state, x)
        return (x + updates, state), None

    x = jnp.linspace(-1.0, 1.0, 64)
    x = jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=900)[0][0])(x)
    np.testing.assert_allclose(x, 0.5, rtol=1e-5)


def test_bad_blocks_are_refused():
    with pytest.raises(ValueError, match="int4: block must be even"):
        lp.int4(block=5)
    with pytest.raises(ValueError, match="int8: block must be an integer"):
        lp.int8(block=0)
