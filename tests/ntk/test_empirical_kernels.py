"""Empirical kernels by every method against dense Jacobians, on networks with explicit weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import ntk
from ntk.empirical._independence import is_independent
from ntk.empirical._walk import find_uses

METHODS = (0, 1, 2, 3)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def dense_kernel(f, params, x1, x2, traced=(), diagonal=()):
    """J1 J2^T from dense Jacobians by a NumPy loop over entries of the layout."""

    def jacobian(x):
        out, rows = jax.jit(lambda p: (f(p, x), jax.jacrev(f)(p, x)))(params)
        flat = [np.asarray(leaf).reshape(out.size, -1) for leaf in jax.tree.leaves(rows)]
        return np.concatenate(flat, axis=1), out.shape

    (j1, s1), (j2, s2) = jacobian(x1), jacobian(x2)
    full = (j1 @ j2.T).reshape((*s1, *s2))
    ndim = len(s1)
    first = list(range(ndim))
    second = [k if k in traced or k in diagonal else ndim + k for k in first]
    out = [c for k in first if k not in traced for c in dict.fromkeys((first[k], second[k]))]
    return np.einsum(full, first + second, out) / np.prod([s1[k] for k in traced] or [1])


def mlp(params, x):
    for k, (w, b) in enumerate(params):
        x = x @ (w / np.sqrt(w.shape[0])) + 0.1 * b[None]
        x = jax.nn.gelu(x) if k < len(params) - 1 else x
    return x


def mlp_params():
    return [
        (normal(k, a, b), normal(9 + k, b)) for k, (a, b) in enumerate([(5, 7), (7, 6), (6, 3)])
    ]


def cnn(params, x):
    for w in params[0]:
        x = lax.conv_general_dilated(
            x, w, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), rhs_dilation=(2, 1)
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ params[1]


def grouped(params, x):
    numbers = ("NCHW", "OIHW", "NCHW")
    x = lax.conv_general_dilated(
        x,
        params[0],
        (2, 1),
        ((1, 2), (0, 1)),
        lhs_dilation=(1, 2),
        dimension_numbers=numbers,
        feature_group_count=2,
    )
    x = lax.conv_general_dilated(
        jnp.tanh(x), params[1], (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=6
    )
    return x.reshape(x.shape[0], -1)[:, :9] @ params[2]


def recurrent(params, x):
    def cell(h, xt):
        h = jnp.tanh(h @ params["w"] * 0.5 + xt @ params["u"] + params["b"][None])
        return h, None

    start = jnp.zeros((x.shape[0], 4), x.dtype)
    return lax.scan(cell, start, jnp.swapaxes(x, 0, 1))[0] @ params["o"]


def stacked(params, x):
    return lax.scan(lambda h, w: (jnp.sin(h @ (w / 2.0)), None), x, params)[0]


def attention(params, x):
    q, k, v = (jnp.einsum("ntd,dhe->nthe", x, w) for w in params[:3])
    weights = jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k) / 2.0, axis=-1)
    out = jnp.einsum("nhts,nshe->nthe", weights, v)
    out = jnp.einsum("nthe,hed->ntd", out, params[3]) + x
    center = out - out.mean(-1, keepdims=True)
    out = center * lax.rsqrt(out.var(-1, keepdims=True) + 1e-3) * params[4][None, None]
    return out.mean(1) @ params[5]


def batch_norm(params, x):
    h = x @ params[0]
    h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
    return jax.nn.relu(h) @ params[1]


def tied(params, x):
    return jnp.tanh(x @ params) @ params.T


def weight_norm(params, x):
    w = params[0] / jnp.linalg.norm(params[0], axis=0, keepdims=True) * params[1][None]
    return jax.nn.relu(x @ w) @ params[2]


def checkpointed(params, x):
    for w in params[:-1]:
        x = jax.checkpoint(lambda w, x: jax.nn.silu(x @ w))(w, x)
    return x @ params[-1]


def embedding(params, x):
    return jnp.tanh(jnp.take(params[0], x, axis=0)).mean(1) @ params[1]


def max_pool(params, x):
    x = lax.conv(x, params[0], (1, 1), "SAME")
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return x.reshape(x.shape[0], -1) @ params[1]


def by_position(params, x):
    return x @ params * jnp.arange(1.0, 1.0 + x.shape[0])[:, None]


def by_size(params, x):
    return x @ params / x.shape[0]


# name: function, parameters, inputs of both sides, independent?, number of structured parameters
NETWORKS = {
    "cnn": lambda: (
        cnn,
        ([normal(1, 3, 3, 2, 4), normal(2, 2, 3, 4, 5)], normal(3, 5, 3)),
        normal(4, 3, 6, 8, 2),
        normal(5, 2, 6, 8, 2),
        True,
        3,
    ),
    "grouped": lambda: (
        grouped,
        (normal(1, 6, 1, 3, 2), normal(2, 6, 1, 2, 2), normal(3, 9, 2)),
        normal(4, 3, 2, 6, 5),
        normal(5, 2, 2, 6, 5),
        True,
        3,
    ),
    "recurrent": lambda: (
        recurrent,
        {"w": normal(1, 4, 4), "u": normal(2, 3, 4), "b": normal(3, 4), "o": normal(4, 4, 2)},
        normal(5, 3, 6, 3),
        normal(6, 2, 6, 3),
        True,
        3,
    ),
    "stacked": lambda: (stacked, normal(1, 5, 4, 4), normal(5, 3, 4), normal(6, 2, 4), True, 1),
    "attention": lambda: (
        attention,
        (
            normal(1, 4, 2, 3),
            normal(2, 4, 2, 3),
            normal(3, 4, 2, 3),
            normal(4, 2, 3, 4),
            normal(7, 4),
            normal(8, 4, 2),
        ),
        normal(5, 3, 5, 4),
        normal(6, 2, 5, 4),
        True,
        5,
    ),
    "batch_norm": lambda: (
        batch_norm,
        (normal(1, 4, 6), normal(2, 6, 2)),
        normal(5, 3, 4),
        normal(6, 5, 4),
        False,
        2,
    ),
    "tied": lambda: (tied, normal(1, 4, 6), normal(5, 3, 4), normal(6, 2, 4), True, 0),
    "weight_norm": lambda: (
        weight_norm,
        (normal(1, 4, 6), normal(2, 6), normal(3, 6, 2)),
        normal(5, 3, 4),
        normal(6, 2, 4),
        True,
        1,
    ),
    "checkpointed": lambda: (
        checkpointed,
        [normal(1, 4, 6), normal(2, 6, 5), normal(3, 5, 2)],
        normal(5, 3, 4),
        normal(6, 2, 4),
        True,
        3,
    ),
    "embedding": lambda: (
        embedding,
        (normal(1, 7, 4), normal(2, 4, 2)),
        jnp.asarray([[0, 3, 3, 1], [6, 5, 0, 2], [1, 1, 1, 1]]),
        jnp.asarray([[2, 3, 4, 1], [6, 6, 0, 2]]),
        True,
        1,
    ),
    "max_pool": lambda: (
        max_pool,
        (normal(1, 3, 2, 3, 3), normal(2, 27, 2)),
        normal(5, 3, 2, 6, 6),
        normal(6, 2, 2, 6, 6),
        True,
        2,
    ),
    "by_position": lambda: (
        by_position,
        normal(1, 4, 2),
        normal(5, 3, 4),
        normal(6, 2, 4),
        False,
        1,
    ),
    "by_size": lambda: (by_size, normal(1, 4, 2), normal(5, 3, 4), normal(6, 2, 4), False, 1),
}
FAST = ("cnn", "recurrent", "batch_norm", "by_size")


def check_network(name, methods):
    with jax.enable_x64(True):
        f, params, x1, x2, independent, structured = NETWORKS[name]()
        leaves, tree = jax.tree.flatten(params)
        closed = jax.make_jaxpr(lambda p, x: f(jax.tree.unflatten(tree, p), x))(leaves, x1)
        assert is_independent(f, params, x1, {}) == independent
        assert len(find_uses(closed, len(leaves), [True] * len(leaves))) == structured
        expected = dense_kernel(f, params, x1, x2)
        for method in methods:
            found = ntk.empirical_ntk_fn(f, (), (), None, method)(x1, x2, params)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("name", FAST)
def test_structured_derivatives_match_dense_jacobians(name):
    check_network(name, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_matches_dense_jacobians(name):
    check_network(name, METHODS)


LAYOUTS = [
    ((), ()),
    ((1,), ()),
    ((), (1,)),
    ((0,), ()),
    ((), (0,)),
    ((0, 1), ()),
    ((0,), (1,)),
    ((), (0, 1)),
]


def check_layout(traced, diagonal, methods, limits, vmap_axes):
    with jax.enable_x64(True):
        params, x1 = mlp_params(), normal(20, 5, 5)
        x2 = normal(21, 5, 5) if 0 in (*traced, *diagonal) else normal(21, 7, 5)
        expected = dense_kernel(mlp, params, x1, x2, traced, diagonal)
        for method in methods:
            for limit in limits:
                for axes in vmap_axes:
                    found = ntk.empirical_ntk_fn(
                        mlp, traced, diagonal, axes, method, max_memory=limit
                    )(x1, x2, params)
                    assert found.shape == expected.shape
                    np.testing.assert_allclose(
                        found, expected, rtol=0, atol=1e-12 * abs(expected).max()
                    )


@pytest.mark.parametrize(("traced", "diagonal"), [LAYOUTS[0], LAYOUTS[1], LAYOUTS[6]])
def test_layouts(traced, diagonal):
    check_layout(traced, diagonal, (0,), (None,), (None,))


@pytest.mark.slow
@pytest.mark.parametrize(("traced", "diagonal"), LAYOUTS)
def test_layouts_by_every_method_whole_and_in_blocks(traced, diagonal):
    check_layout(traced, diagonal, METHODS, (None, 8000.0), (None, 0))


@pytest.mark.slow
def test_blocks_under_a_memory_limit():
    check_layout((0,), (), (0,), (4000.0,), (0,))


def test_linen_and_nnx_are_identical_to_the_plain_function():
    with jax.enable_x64(True):
        x = normal(30, 4, 3)

        class Linen(linen.Module):
            @linen.compact
            def __call__(self, x):
                hidden = linen.relu(linen.Dense(6, param_dtype=jnp.float64, name="a")(x))
                return linen.Dense(2, param_dtype=jnp.float64, name="b")(hidden)

        class Nnx(nnx.Module):
            def __init__(self, rngs):
                self.a = nnx.Linear(3, 6, rngs=rngs, param_dtype=jnp.float64)
                self.b = nnx.Linear(6, 2, rngs=rngs, param_dtype=jnp.float64)

            def __call__(self, x):
                return self.b(nnx.relu(self.a(x)))

        def plain(p, x):
            hidden = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"][None])
            return hidden @ p["b"]["kernel"] + p["b"]["bias"][None]

        for f, params in (
            ntk.from_flax(Linen(), key=jax.random.key(0), inputs=x),
            ntk.from_flax(Nnx(nnx.Rngs(0))),
        ):
            same = {
                n: {k: jnp.asarray(params[n][k][...]) for k in ("kernel", "bias")} for n in "ab"
            }
            expected = ntk.empirical_ntk_fn(plain, ())(x, None, same)
            np.testing.assert_array_equal(ntk.empirical_ntk_fn(f, ())(x, None, params), expected)
            linear = jax.jit(ntk.linearize(f, params))(jax.tree.map(lambda a: 2.0 * a, params), x)
            moved = jax.tree.map(lambda a: 2.0 * a, same)
            np.testing.assert_array_equal(linear, jax.jit(ntk.linearize(plain, same))(moved, x))


def test_from_flax_refuses():
    with pytest.raises(ValueError, match="holds no parameters"):
        ntk.from_flax(linen.Dense(2))
    with pytest.raises(ValueError, match="must hold 'params'"):
        ntk.from_flax(linen.Dense(2), {"weights": 1})
    with pytest.raises(TypeError, match="expected a flax"):
        ntk.from_flax(lambda x: x)


def test_vector_products_match_the_kernel():
    with jax.enable_x64(True):
        params, x1, x2, v = mlp_params(), normal(40, 4, 5), normal(41, 3, 5), normal(42, 3, 3)
        kernel = dense_kernel(mlp, params, x1, x2)
        found = jax.jit(ntk.empirical_ntk_vp_fn(mlp, x1, x2, params))(v)
        expected = np.einsum("nmop,mp->no", kernel, np.asarray(v))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(expected).max())


def test_vectors_of_another_shape_are_refused():
    product = ntk.empirical_ntk_vp_fn(lambda w, x: x @ w, jnp.eye(2), None, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"shapes of f\(params, x2\), \(2, 1\), got \(2,\)"):
        product(jnp.ones(2))


def test_integer_leaves_are_not_differentiated():
    params = {"w": jnp.ones((3, 2)), "steps": jnp.asarray(3)}
    found = ntk.empirical_ntk_fn(lambda p, x: x @ p["w"] * p["steps"])(
        jnp.ones((1, 3)), None, params
    )
    np.testing.assert_allclose(found, [[27.0]])


@pytest.mark.parametrize("method", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_mixed_precision(method):
    # bfloat16 products with float32 sums: cotangents and activations have different types
    def f(params, x):
        for w in params:
            x = lax.dot(x, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
            x = jnp.tanh(x).astype(jnp.bfloat16)
        return x.astype(jnp.float32)

    params = [normal(k, 4, 4).astype(jnp.float32) for k in range(2)]
    x = normal(5, 3, 4).astype(jnp.bfloat16)
    found = ntk.empirical_ntk_fn(f, (), implementation=method)(x, None, params)

    def wide(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    expected = dense_kernel(wide, params, x.astype(jnp.float32), x.astype(jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * abs(expected).max())


def test_large_mlp_stays_small():
    # The full kernel of 64 inputs and 10 outputs takes 1.6 MB; its Jacobian would take 1 GB.
    params = [
        (jax.ShapeDtypeStruct((a, b), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.float32))
        for a, b in [(256, 512), (512, 512), (512, 10)]
    ]
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    kernel_fn = jax.jit(ntk.empirical_ntk_fn(mlp, ()), static_argnums=(1,))
    memory: Any = kernel_fn.lower(x, None, params).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 20e6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trace_axes": (2,)}, r"trace_axes=\(2,\).*\[-2, 1\]"),
        ({"trace_axes": (1, -1)}, "twice"),
        ({"trace_axes": (1,), "diagonal_axes": (1,)}, "both trace_axes"),
        ({"implementation": 7}, "one of 0, 1, 2, 3"),
        ({"vmap_axes": (0, 0)}, "triple"),
        ({"max_memory": -1.0}, "positive"),
        ({"trace_axes": (0,)}, "one size there"),
    ],
)
def test_refusals_name_the_argument(options, match):
    x1, x2, w = jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=match):
        ntk.empirical_ntk_fn(lambda p, x: x @ p, **options)(x1, x2, w)


def test_get_must_be_known():
    with pytest.raises(ValueError, match="'nngp' or 'ntk'"):
        ntk.empirical_kernel_fn(lambda p, x: x @ p)(jnp.ones((2, 3)), None, "cov", jnp.ones((3, 2)))
