"""The Kernel as an object, joins of branches, and inputs and networks that must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import Kernel, stax

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 5, 4, 3)).astype("f")
VECTORS = RNG.normal(size=(3, 4)).astype("f")


@pytest.fixture(scope="module")
def kernel():
    return stax.Conv(1, (2, 3), padding="SAME", b_std=0.3).kernel_fn(IMAGES, IMAGES[:2] * 2)


def test_products_with_constants_of_either_batch(kernel):
    left, right = RNG.normal(size=(2, 5, 2)).astype("f")
    dims = (((1,), (0,)), ((), ()))
    out = kernel.dot_general(left, right, False, dims)
    assert (out.shape1, out.shape2) == ((3, 4, 1, 2), (2, 4, 1, 2))
    assert (out.batch_axis, out.channel_axis) == (0, 2)
    true = np.einsum("abijvw,ik,jl->abvwkl", kernel.nngp, left, right)
    np.testing.assert_allclose(out.nngp, true, rtol=1e-5, atol=1e-6)
    own = np.einsum("bijvw,ik,jl->bvwkl", kernel.cov2, right, right)
    np.testing.assert_allclose(out.cov2, own, rtol=1e-5, atol=1e-6)
    assert kernel.dot_general(None, None, False, dims) is kernel
    with pytest.raises(ValueError, match="same number of axes"):
        kernel.dot_general(left, None, False, dims)
    with pytest.raises(NotImplementedError, match="infinitely"):
        kernel.dot_general(left[:3], left[:3], False, (((3,), (0,)), ((), ())))


def test_indexing_is_that_of_the_outputs(kernel):
    out = kernel[1:, ::-2, 0]
    assert isinstance(out, Kernel)
    assert (out.shape1, out.shape2) == ((2, 3, 1), (1, 3, 1))
    true = np.asarray(kernel.nngp)[1:, 1:, ::-2, ::-2, 0, 0]
    np.testing.assert_array_equal(out.nngp, true)
    with pytest.raises(NotImplementedError, match="batch axis"):
        kernel[0]
    with pytest.raises(ValueError, match="integers, slices"):
        kernel[[0, 1]]


def test_arithmetic_of_outputs(kernel):
    np.testing.assert_allclose(((-kernel) * 2.0 / 4.0).cov1, kernel.cov1 / 4, rtol=1e-6)
    np.testing.assert_allclose((+kernel + 3.0).nngp, kernel.nngp + 9, rtol=1e-6)
    turned = kernel.transpose((1, 0))
    assert turned.shape1 == (3, 4, 5, 1)
    np.testing.assert_array_equal(turned.nngp, np.transpose(kernel.nngp, (0, 1, 4, 5, 2, 3)))
    np.testing.assert_array_equal(kernel.reverse().nngp, turned.nngp)
    part = kernel.slice(slice(0, 1), slice(1, 2))
    np.testing.assert_array_equal(part.nngp, kernel.nngp[:1, 1:2])
    assert kernel.replace(ntk=None).asdict()["ntk"] is None
    assert len(kernel.astuple()) == len(kernel.asdict())


def test_a_kernel_with_a_residual_scales_and_feeds_other_layers():
    lower = stax.serial(stax.Dense(1, 1.2, 0.4), stax.Relu()).kernel_fn
    upper = stax.serial(stax.Dense(1, 0.9, 0.3), stax.Abs()).kernel_fn
    half = lower(VECTORS, VECTORS[:2] + 0.1) * 0.5
    norm = np.outer(half.cov1, half.cov2)
    np.testing.assert_allclose(half.residual, norm - half.nngp**2, rtol=1e-4, atol=1e-6)
    with_factor = stax.serial(stax.Dense(1, 1.2, 0.4), stax.Relu(), stax.DotGeneral(rhs=0.5),
                              stax.Dense(1, 0.9, 0.3), stax.Abs()).kernel_fn  # fmt: skip
    true = with_factor(VECTORS, VECTORS[:2] + 0.1, "ntk")
    np.testing.assert_allclose(upper(half, get="ntk"), true, rtol=1e-5)


def test_concatenation_along_the_batch():
    one, two = stax.Dense(1, 1.1, 0.2), stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
    net = stax.serial(stax.FanOut(2), stax.parallel(one, two), stax.FanInConcat(0))
    found = net.kernel_fn(VECTORS, VECTORS[:2], ("nngp", "ntk", "cov1", "shape1"))
    assert found.shape1 == (6, 1)
    for field in ("nngp", "ntk"):
        blocks = [part.kernel_fn(VECTORS, VECTORS[:2], field) for part in (one, two)]
        true = np.zeros((6, 4), "f")
        true[:3, :2], true[3:, 2:] = blocks
        np.testing.assert_allclose(getattr(found, field), true, rtol=1e-6)
    np.testing.assert_allclose(found.cov1[:3], one.kernel_fn(VECTORS, None, "cov1"), rtol=1e-6)


def test_finite_networks_take_masks_through_every_width():
    x = IMAGES.copy()
    x[:, 3:] = 7.0
    shown = x[:, :3]
    init_fn, apply_fn, _ = stax.serial(
        stax.Dense(6), stax.Relu(), stax.GlobalSelfAttention(4, 2, 2, 2), stax.Abs(), stax.Dense(5),
        stax.GlobalAvgPool(), stax.Dense(2),
    )  # fmt: skip
    _, params = init_fn(jax.random.key(0), x.shape)
    hidden = stax.unmask_fn(apply_fn)(params, x, mask_constant=7.0)
    # Without positions in the layers, what is hidden might as well not be there.
    np.testing.assert_allclose(hidden, apply_fn(params, shown), rtol=1e-4, atol=1e-5)


def test_duplicates_that_dropout_tells_apart_in_one_branch():
    dense = stax.Dense(1, 1.2, 0.3)
    net = stax.serial(
        dense, stax.FanOut(2),
        stax.parallel(stax.serial(stax.Relu(), dense),
                      stax.serial(stax.Relu(), stax.Dropout(0.5), dense)),
        stax.FanInSum(), stax.Relu(), dense,
    ).kernel_fn  # fmt: skip
    with jax.enable_x64(True):
        x = np.concatenate([VECTORS, VECTORS[:1]]).astype(float)
        near = x.copy()
        near[3] += 1e-7
        true, found = (np.asarray(net(a, None, "ntk")) for a in (near, x))
    np.testing.assert_allclose(found[0, 3], true[0, 3], rtol=1e-5)
    assert found[0, 0] > 1.1 * found[0, 3]


def test_one_graph_per_input_keeps_the_diagonal_known():
    graph = RNG.random((3, 5, 4, 5, 4))
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.Aggregate(), stax.Dense(1)).kernel_fn
    kernel = net(IMAGES, None, pattern=(graph, graph.copy()))
    np.testing.assert_array_equal(kernel.same, np.eye(3, dtype=bool))
    assert net(IMAGES, None, pattern=(graph, graph[::-1])).same is None


@pytest.mark.parametrize("layer", [stax.Relu(), stax.Abs(), stax.RectifiedMonomial(2)])
def test_one_nan_pixel_shows_in_its_outputs_and_no_others(layer):
    """XLA's maximum followed by a mean passes over NaN on a CPU; the outputs would look fine."""
    network = stax.serial(stax.Conv(32, (3, 3), padding="SAME"), layer, stax.GlobalAvgPool())
    images = RNG.normal(size=(16, 16, 16, 3)).astype("f")
    _, params = network.init_fn(jax.random.key(0), images.shape)
    images[5, 8, 8, 1] = np.nan
    found = np.isnan(jax.jit(network.apply_fn)(params, images))
    np.testing.assert_array_equal(found.all(axis=1), np.arange(16) == 5)
    np.testing.assert_array_equal(found.any(axis=1), np.arange(16) == 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused_by_name(bad):
    x = VECTORS.copy()
    x[1, 2] = bad
    kernel_fn = stax.Dense(1).kernel_fn
    with pytest.raises(ValueError, match=r"x1 holds (nan|inf) at index \(1, 2\).*mask_constant"):
        kernel_fn(x, None, "ntk")
    with pytest.raises(ValueError, match="x2 holds"):
        kernel_fn(VECTORS, x, "ntk")
    assert np.isfinite(kernel_fn(x[:, None], None, "nngp", mask_constant=bad)).all()
    assert not np.isfinite(jax.jit(lambda a: kernel_fn(a, None, "nngp"))(x)).all()


def fan(*branches):
    return [stax.Dense(1), stax.FanOut(len(branches)), stax.parallel(*branches)]


REFUSED = {
    "dependent sum": (fan(stax.Identity(), stax.Relu()) + [stax.FanInSum()], VECTORS,
                      r"layer 3 \(FanInSum\).*depend on each other"),
    "dependent product": (fan(stax.Identity(), stax.Identity()) + [stax.FanInProd()], VECTORS,
                          r"layer 3 \(FanInProd\).*Put Dense or Conv"),
    "means of two branches": (
        fan(*[stax.serial(stax.Dense(1), stax.Relu())] * 2) + [stax.FanInSum()], VECTORS,
        r"layer 3 \(FanInSum\).*mean-zero"),
    "function of joined channels": (
        fan(stax.Dense(1), stax.Dense(1, 2.0)) + [stax.FanInConcat(-1), stax.Relu()], VECTORS,
        r"layer 4 \(ABRelu\).*Dense or Conv"),
    "shapes of branches": (fan(stax.Dense(1), stax.Dense(2)) + [stax.FanInSum()], VECTORS,
                           r"layer 3 \(FanInSum\).*same shape"),
    "branches without copies": ([stax.parallel(stax.Dense(1), stax.Dense(1))], VECTORS,
                                r"layer 0 \(parallel\).*FanOut\(2\)"),
    "error inside a branch": (fan(stax.Identity(), stax.Conv(1, (2, 2))), VECTORS,
                              r"layer 2 \(parallel\): branch 1: .*4 \(NHWC\)"),
    "channels in a product": (
        [stax.Conv(1, (2, 2)), stax.DotGeneral(
            rhs=np.ones(1), dimension_numbers=(((3,), (0,)), ((), ())))], IMAGES,
        r"layer 1 \(DotGeneral\).*Dense or Conv"),
    "index of channels": ([stax.Dense(4), stax.Index(stax.Slice[:, :, :, 0])], IMAGES,
                          r"layer 1 \(Index\).*channels"),
    "index out of range": ([stax.Dense(4), stax.Index(stax.Slice[:, 7])], IMAGES,
                           r"layer 1 \(Index\).*out of range for an axis of 5"),
    "other axes": ([stax.Conv(1, (2, 2)), stax.Dense(1, channel_axis=1)], IMAGES,
                   r"layer 1 \(Dense\).*give the layer the axes of its inputs"),
    "norm without channels": ([stax.Conv(1, (2, 2)), stax.LayerNorm(1)], IMAGES,
                              r"layer 1 \(LayerNorm\).*leaves out the channels"),
    "norm of axes that are not there": ([stax.Dense(1), stax.LayerNorm((1, 4))], IMAGES,
                                        r"layer 1 \(LayerNorm\).*4 dimensions"),
    "attention with the usual scale": (
        [stax.Conv(1, (2, 2)), stax.GlobalSelfAttention(1, 1, 1, 1, linear_scaling=False)],
        IMAGES, r"layer 1 \(GlobalSelfAttention\).*use linear_scaling=True"),
    "resized batch": ([stax.Conv(1, (2, 2)), stax.ImageResize((4, -1, -1, -1), "linear")], IMAGES,
                      r"layer 1 \(ImageResize\).*write -1 there"),
    "graph of another size": ([stax.Dense(1), stax.Aggregate()], IMAGES,
                              r"layer 1 \(Aggregate\).*must be \(5, 4, 5, 4\)"),
    "pool on vectors": ([stax.Dense(1), stax.AvgPool((2, 2))], VECTORS,
                        r"layer 1 \(AvgPool\).*0 spatial axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_layer_and_the_way_out(name):
    layers, x, message = REFUSED[name]
    pattern = jnp.ones((3, 2, 2)) if "graph" in name else None
    with pytest.raises((ValueError, NotImplementedError), match=message):
        stax.serial(*layers).kernel_fn(x, None, "ntk", pattern=pattern)
