"""What every kappa does with zeros, ties, NaN, scalars and nothing, and states that are saved."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lion_lyapunov import analysis, lion_k, low_precision
from lion_lyapunov import kappas as K
from lion_lyapunov._parts import on_tree
from lion_lyapunov._signed_power import signed_power

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)

ENTRYWISE = {
    "l1": K.l1(),
    "trimmed_l1": K.trimmed_l1(0.3),
    "huber": K.huber(0.5),
    "relativistic": K.relativistic(0.4),
    "log_cosh": K.log_cosh(2.0),
    "arctan": K.arctan(1.5),
    "half_squared_l2": K.half_squared_l2(),
    "power": K.power(1.5),
    "moreau_huber": K.moreau(K.huber(0.5), 0.5),
}
VECTORS = {
    "l2": K.l2(),
    "lp_1.2": K.lp(1.2),
    "lp_3": K.lp(3.0),
    "linf": K.linf(),
    "top_k": K.top_k(2),
    "group_l2": K.group_l2(2),
    "half_squared": K.half_squared(K.l2()),
    "scaled": K.scaled(K.l2(), 2.0),
    "moreau_l2": K.moreau(K.l2(), 0.5),
    "ball_oracle": K.from_lmo(lambda z: -z / jnp.linalg.norm(z), is_even=True),
}
MATRICES = {
    "nuclear": K.nuclear(),
    "nuclear_svd": K.nuclear("svd"),
    "newton_schulz": K.nuclear("newton_schulz"),
    "operator_norm": K.operator_norm(),
    "frobenius": K.frobenius(),
    "schatten": K.schatten(1.5),
    "ky_fan": K.ky_fan(1),
    "spectral_huber": K.spectral(K.huber(0.5)),
    "row_l2": K.row_l2(),
    "col_l2": K.col_l2(),
}
EVEN = {**ENTRYWISE, **VECTORS, **MATRICES}
# Singular vectors of zero and NaN matrices take the longest to compile.
SLOW = set(MATRICES) - {"nuclear", "row_l2", "frobenius"} | {"relativistic", "arctan", "moreau_l2"}


def named(kappas):
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in kappas]


@pytest.mark.parametrize("name", named(EVEN))
def test_zero_moves_nothing_and_nan_shows(name):
    kappa = EVEN[name]
    shape = (3, 2) if name in MATRICES else (4,)
    bad = jnp.ones(shape).at[(0,) * len(shape)].set(jnp.nan)

    def all_of_it(z, x):
        optimizer = lion_k(0.1, kappa, weight_decay=0.5)
        updates, _ = optimizer.update(z, optimizer.init(x), x)
        return kappa.value(z), jax.grad(kappa.value)(z), updates

    value, slope, updates = jit(all_of_it)(jnp.zeros(shape), jnp.zeros(shape))
    assert value == 0.0
    assert not np.any(slope)
    assert not np.any(updates)
    value, _, updates = jit(all_of_it)(bad, jnp.zeros(shape))
    assert np.isnan(value)
    assert np.isnan(np.asarray(updates)[(0,) * len(shape)])
    if name in ENTRYWISE:  # every other kappa may spread it over its leaf, row or column
        assert np.isfinite(np.asarray(updates)[1:]).all()


@pytest.mark.parametrize("place", [0, 3, 6000, 12_287])
def test_nan_shows_in_large_leaves(place):
    """From 4,096 entries on, XLA's maximum on a CPU passes over NaN; nothing here may."""
    vector = jnp.ones(12_288).at[place].set(jnp.nan)
    kappas = [*ENTRYWISE.values(), *(VECTORS[n] for n in ("l2", "lp_3", "linf", "group_l2"))]
    for kappa in [*kappas, K.positive_part(), K.trimmed_l1(2.0)]:
        bounded = kappa.name not in ("half_squared_l2", "power(1.5)")  # no constraint, gauge 0
        assert np.isnan(jit(kappa.value)(vector)), kappa
        assert np.isnan(jit(kappa.dual_norm)(vector)) == bounded, kappa
        assert not np.isfinite(jit(kappa.conjugate)(vector)), kappa
        assert np.isnan(jit(kappa.subgradient)(vector)[place]), kappa
    rows = vector.reshape(-1, 2)
    for kappa in (K.row_l2(), K.col_l2()):
        assert np.isnan(jit(kappa.dual_norm)(rows)), kappa
    assert np.isnan(jit(K.batched(K.l2()).dual_norm)(rows))
    leaves = dataclasses.replace(K.l1(), dual_norm=lambda leaf: leaf)
    assert np.isnan(on_tree(leaves).dual_norm(list(np.asarray(vector[:6001])))) == (place <= 6000)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("stored", [low_precision.int8(), low_precision.int4()])
def test_bad_entries_show_in_large_quantised_momenta(stored, bad):
    """They fill their block with NaN, and no other one."""
    x = jnp.ones(12_288).at[5000].set(bad)
    block = 256 if stored.name == "int8" else 64
    found = np.isnan(jit(lambda x: stored.decode(stored.encode(x, None), x))(x))
    np.testing.assert_array_equal(np.flatnonzero(found) // block, 5000 // block)
    assert found.sum() == block


@pytest.mark.parametrize("name", named([*ENTRYWISE, *VECTORS]))
def test_a_scalar_is_a_vector_of_one_entry(name):
    kappa = EVEN[name]
    scalar = jit(lambda z: (kappa.value(z), kappa.subgradient(z), kappa.project(z)))
    alone, vector = scalar(jnp.float32(-0.7)), scalar(jnp.full(1, -0.7, jnp.float32))
    assert alone[1].shape == alone[2].shape == ()
    for a, b in zip(alone, vector, strict=True):
        np.testing.assert_allclose(a, np.reshape(b, ()), rtol=1e-6)
    assert kappa.subgradient(jnp.float32(-0.7)) < 0 or name == "trimmed_l1"


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_kappas_refuse_scalars_by_shape(name):
    if name == "frobenius":  # a sum of squares of whatever entries there are
        assert MATRICES[name].subgradient(jnp.float32(-3.0)) == -1.0
        return
    with pytest.raises(ValueError, match=r"needs a matrix, got an array of shape \(\)"):
        MATRICES[name].subgradient(jnp.float32(1.0))


@pytest.mark.parametrize("name", ["l1", "huber", "l2", "lp_3", "top_k", "group_l2", "nuclear_svd"])
def test_leaves_without_entries(name):
    kappa, empty = EVEN[name], jnp.zeros((0, 3) if name in MATRICES else 0)
    assert kappa.value(empty) == 0.0
    assert kappa.subgradient(empty).shape == empty.shape
    assert kappa.conjugate(empty) == 0.0
    assert analysis.violation(kappa, {"w": empty}, 1.0)["w"] == 0.0


def test_kappas_that_are_not_even_at_zero():
    # Zero is no special point of these: the simplex has a centre, the box [0, 1] a corner.
    np.testing.assert_allclose(K.log_sum_exp(0.5).subgradient(jnp.zeros(4)), 0.25)
    assert not np.any(K.positive_part().subgradient(jnp.zeros(4)))
    oracle = K.from_lmo(lambda z: jnp.zeros_like(z).at[jnp.argmin(z)].set(1.0))
    assert jnp.sum(oracle.subgradient(jnp.zeros(4))) == 1.0  # some vertex of the simplex
    assert np.isnan(K.positive_part().subgradient(jnp.array([jnp.nan, 1.0]))[0])
    assert np.isnan(K.log_sum_exp(0.5).subgradient(jnp.array([jnp.nan, 1.0]))).all()


@pytest.mark.parametrize(
    ("k", "z", "expected"),
    [
        (2, [3.0, -3.0, 3.0, 1.0], [2 / 3, -2 / 3, 2 / 3, 0.0]),
        (3, [5.0, -2.0, 2.0, 2.0, -2.0, 1.0], [1.0, -0.5, 0.5, 0.5, -0.5, 0.0]),
        (1, [-4.0, 4.0], [-0.5, 0.5]),
        (2, [7.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # tied at 0: their share has no sign
        (3, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        (9, [1.0, -2.0], [1.0, -1.0]),
        (1, [-0.0, 0.0], [0.0, 0.0]),
        (2, [jnp.inf, 1.0, -1.0], [1.0, 0.5, -0.5]),
    ],
)
@pytest.mark.parametrize(
    "dtype",
    [jnp.float64, *[pytest.param(t, marks=pytest.mark.slow) for t in (jnp.float32, jnp.bfloat16)]],
)
def test_exact_ties_share_what_is_left_of_k(k, z, expected, dtype):
    kappa = K.top_k(k)
    with jax.enable_x64(True):
        z = jnp.asarray(z, dtype)
        slope = jit(kappa.subgradient)(z)
        assert slope.dtype == dtype
        np.testing.assert_array_equal(slope, jnp.asarray(np.asarray(expected), dtype))
        z, slope = np.asarray(z, np.float64), np.asarray(slope, np.float64)
        if np.isfinite(z).all():
            # Still a subgradient: Fenchel and Young's equality.
            digits = 1e-2 if dtype == jnp.bfloat16 else 1e-6
            assert np.vdot(z, slope) == pytest.approx(np.sort(np.abs(z))[-k:].sum(), rel=digits)


def test_ties_of_other_kappas():
    np.testing.assert_array_equal(K.linf().subgradient(jnp.array([2.0, -2.0, 1.0])), [0.5, -0.5, 0])
    np.testing.assert_array_equal(K.trimmed_l1(0.5).subgradient(jnp.array([0.5, -0.5, 1.0]))[:2], 0)
    np.testing.assert_array_equal(K.positive_part().subgradient(jnp.array([0.0, 1.0])), [0.0, 1.0])
    # Equal largest singular values share a rank-one step equally.
    np.testing.assert_allclose(
        K.operator_norm().subgradient(jnp.eye(2)), 0.5 * np.eye(2), atol=1e-6
    )


@pytest.mark.parametrize("name", named(sorted(set(MATRICES) - {"row_l2", "col_l2"})))
def test_rank_one_matrices_give_rank_one_steps(name):
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=4), rng.normal(size=3)
    unit = np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
    with jax.enable_x64(True):
        slope = np.asarray(jit(MATRICES[name].subgradient)(jnp.asarray(5.0 * unit)))
    share = np.sum(slope * unit)
    np.testing.assert_allclose(slope, share * unit, atol=1e-10)
    assert share == pytest.approx(1.0, abs=0.12 if name == "newton_schulz" else 1e-10)


def states(tmp_path):
    """One optimizer for each kind of state."""
    key = jax.random.key(0)
    plain = functools.partial(lion_k, 0.01, K.l1(), weight_decay=0.1)
    return {
        "float32": plain(),
        "bf16": plain(mu_dtype=jnp.bfloat16),
        "bf16_stochastic": plain(mu_dtype=low_precision.bfloat16(key=key)),
        "int8": plain(mu_dtype=low_precision.int8(block=8)),
        "int8_stochastic": plain(mu_dtype=low_precision.int8(block=8, key=key)),
        "int4": plain(mu_dtype=low_precision.int4(block=8)),
        "parameters": low_precision.with_stochastic_rounding(plain(), key=key),
        "scheduled": optax.inject_hyperparams(lion_k, static_args=("kappa",))(
            lambda t: 0.01 / (t + 1), K.l1()
        ),
    }


@pytest.mark.parametrize("name", states(None))
def test_a_run_resumed_from_orbax_ends_with_the_same_bits(name, tmp_path):
    optimizer = states(tmp_path)[name]
    dtype = jnp.bfloat16 if name == "parameters" else jnp.float32
    params = {"w": jnp.linspace(-1.0, 1.0, 15, dtype=dtype).reshape(3, 5), "s": jnp.ones((), dtype)}
    update = jit(optimizer.update)

    def steps(params, state, start, stop):
        for index in range(start, stop):
            grads = jax.tree.map(lambda p, i=index: p - jnp.cos(i + p), params)
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    middle = steps(params, optimizer.init(params), 0, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", middle)
        checkpointer.wait_until_finished()
        like = jax.tree.map(jnp.zeros_like, (params, optimizer.init(params)))
        restored = checkpointer.restore(tmp_path / "state", like)
    for a, b in zip(
        jax.tree.leaves(steps(*restored, 3, 6)), jax.tree.leaves(steps(*middle, 3, 6)), strict=True
    ):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("p", [1.01, 1.2, 1.5, 1.9, 2.0, 2.7, 3.0, 4.0, 4.5, 6.0, 7.7])
@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e-13, 1.0, 1e12, 1e25, 1e37])
def test_directions_of_lp_norms_do_not_depend_on_the_scale(p, size):
    """Squares and cubes of such gradients leave float32; the expected side is float64.

    A power of |z| has an error of 5 ulp, and the sum takes its 2nd, 4th or 8th power.
    """
    z = np.random.default_rng(5).normal(size=30)
    expected = np.sign(z) * (np.abs(z) / np.sum(np.abs(z) ** p) ** (1 / p)) ** (p - 1)
    scaled = jnp.asarray(size * z, jnp.float32)
    found = jax.vmap(K.lp(p).subgradient)(jnp.stack([scaled, jnp.zeros_like(scaled)]))
    rtol = 5e-7 * 2 ** np.ceil(np.log2(p))
    np.testing.assert_allclose(found[0], expected, rtol=rtol)
    np.testing.assert_array_equal(found[1], 0.0)


def test_powers_that_floats_cannot_resolve_are_refused():
    with pytest.raises(ValueError, match=r"p must be at most 1e4, or inf, got 1e\+300"):
        K.lp(1e300)
    assert K.lp(np.inf).name == "linf"


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("p", [1.2, 1.5, 2.7, 3.0])
def test_one_bad_entry_shows_in_the_whole_direction_of_an_lp_norm(p, bad):
    found = K.lp(p).subgradient(jnp.array([0.0, 1.0, bad], jnp.float32))
    assert np.isnan(found).all()


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_directions_of_rows_do_not_depend_on_the_scale(size):
    """One row of the size and one of ordinary size: neither may spoil the other."""
    z = np.random.default_rng(6).normal(size=(3, 8))
    expected = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected[2] = 0.0
    rows = jnp.asarray(z * np.array([[size], [1.0], [0.0]]), jnp.float32)
    np.testing.assert_allclose(K.row_l2().subgradient(rows), expected, rtol=1e-6)
    np.testing.assert_allclose(K.col_l2().subgradient(rows.T), expected.T, rtol=1e-6)


def test_normalised_directions_have_their_derivative_where_an_entry_is_zero():
    """The derivative of z / |z| is (1 - n n^T) / |z| with n = z / |z|."""
    z = np.array([0.0, 3.0, -4.0])
    n = z / 5.0
    found = jax.jacobian(K.l2().subgradient)(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found, (np.eye(3) - np.outer(n, n)) / 5.0, atol=1e-7)


@pytest.mark.parametrize("a", [0.003, 0.04, 0.1, 0.3, 0.5, 0.6, 0.9, 0.999])
def test_signed_powers_of_the_whole_float32_range(a):
    """NumPy's powers in float64 are the other side; 6e-7 is five ulp."""
    rng = np.random.default_rng(0)
    parts = (2.0 ** rng.uniform(-126, 127.99, 20_000), rng.uniform(0.5, 2.1, 20_000))
    u = np.concatenate([*parts, [2.0**-126, 1.0, 3.4028235e38]]).astype(np.float32)
    found = jax.jit(signed_power, static_argnums=1)
    np.testing.assert_allclose(found(jnp.asarray(u), a), u.astype(np.float64) ** a, rtol=6e-7)
    np.testing.assert_array_equal(found(jnp.asarray(-u), a), -found(jnp.asarray(u), a))
    kept = jnp.array([0.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(found(kept, a), kept)


def test_signed_powers_have_their_derivatives():
    z, a = jnp.array([-0.3, 0.0, 1.0, 7.0], jnp.float32), 0.6
    slope = jax.grad(lambda z: signed_power(z, a))
    size = np.where(np.asarray(z) == 0, np.inf, np.abs(np.asarray(z, np.float64)))
    np.testing.assert_allclose(jax.vmap(slope)(z), a * size ** (a - 1), rtol=1e-6)
    bend = jax.vmap(jax.grad(slope))(z)
    np.testing.assert_allclose(bend, a * (a - 1) * np.sign(z) * size ** (a - 2), rtol=2e-6)
