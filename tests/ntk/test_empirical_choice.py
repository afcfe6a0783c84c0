"""The choice of a method and of an order of contraction, from shapes alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from benchmarks._ntk_models import five_more_models, ten_models
from ntk.empirical import _ntk
from ntk.empirical._cost import ORDERS, best_order, pair_cost
from ntk.empirical._layout import Factor, contract, matrix_order, multiply

MODELS = {**ten_models(), **five_more_models()}


def chosen(monkeypatch, name):
    """The method that the default takes; nothing is run."""
    f, params, x = MODELS[name]
    found = []

    def spy(*args):
        found.append(choose(*args))
        return found[-1]

    choose = _ntk.choose
    with monkeypatch.context() as patch:
        patch.setattr(_ntk, "choose", spy)
        jax.eval_shape(lambda: ntk.empirical_ntk_fn(f, ())(x, None, params))
    return int(found[0].method)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        # measured: the next best method takes 1.2 to 200 times as long
        ("scalar MLP", 3),
        ("tied autoencoder", 2),
        ("batch norm", 3),
        ("separable convolutions", 3),
        ("GRU", 3),
    ],
)
def test_the_default_takes_the_fastest_method(monkeypatch, name, method):
    assert chosen(monkeypatch, name) == method


def random_factors(rng):
    """Two arrays with letters in random order, some of size 1, and what to keep."""
    letters = list("abcdef")
    sizes = {k: int(rng.integers(1, 4)) for k in letters}
    one, two = (
        tuple(rng.permutation([k for k in letters if k in group or rng.random() < 0.5]))
        for group in ("ab", "bc")
    )
    keep = [k for k in letters if not (k in one and k in two) or rng.random() < 0.5]
    arrays = [rng.normal(size=[sizes[k] for k in group]).astype(np.float32) for group in (one, two)]
    return Factor(jnp.asarray(arrays[0]), one), Factor(jnp.asarray(arrays[1]), two), keep


def test_products_by_letters_match_einsum():
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b, keep = random_factors(rng)
        found = multiply(a, b, keep)
        expected = np.einsum(
            f"{''.join(a.letters)},{''.join(b.letters)}->{''.join(found.letters)}", a.array, b.array
        )
        assert set(found.letters) == {k for k in (*a.letters, *b.letters) if k in keep}
        np.testing.assert_allclose(found.array, expected, rtol=1e-5, atol=1e-5)
        (letters, shape), cost = pair_cost(
            (a.letters, a.array.shape), (b.letters, b.array.shape), set(keep)
        )
        assert letters == found.letters
        assert shape == found.array.shape
        assert cost.flops >= 2 * expected.size


def test_every_order_of_contraction_gives_the_same():
    rng = np.random.default_rng(1)
    letters = [("n", "o", "s", "k"), ("n", "s", "i"), ("m", "p", "t", "k"), ("m", "t", "i")]
    sizes = dict(zip("nosktimp", (2, 3, 4, 2, 5, 3, 2, 2)))
    arrays = [rng.normal(size=[sizes[k] for k in group]) for group in letters]
    expected = np.einsum("nosk,nsi,mptk,mti->nmop", *arrays)
    with jax.enable_x64(True):
        factors = [Factor(jnp.asarray(a), group) for a, group in zip(arrays, letters)]
        for order in ORDERS:
            found = contract(factors, ("n", "m", "o", "p"), order)
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("letters", "still", "together"),
    [
        ("bfs", True, True),
        ("bsf", True, True),
        ("fbs", False, True),  # blocks change places
        ("fsb", False, False),  # the batch is innermost
        ("fbs1", False, True),  # an axis of size 1 is nowhere
    ],
)
def test_what_a_matrix_product_must_move(letters, still, together):
    sizes = [1 if k == "1" else 3 for k in letters]
    _, found_still, found_together = matrix_order(tuple(letters), sizes, ("b",), ("s",))
    assert (found_still, found_together) == (still, together)


def test_the_order_follows_the_sizes():
    def order(outputs, positions, width):
        cotangent = (("n", "o", "s", "k"), (8, outputs, positions, width))
        activation = (("n", "s", "i"), (8, positions, width))
        other = (("m", "p", "t", "k"), (8, outputs, positions, width))
        last = (("m", "t", "i"), (8, positions, width))
        return ORDERS.index(best_order([cotangent, activation, other, last], tuple("nmop"))[0])

    assert order(2, 1, 512) == 0  # a dense layer: never the Jacobian
    assert order(2, 400, 16) == 1  # many positions, a small filter: the Jacobian


def test_flops_of_a_product_count_every_letter_once():
    for rows, columns, inner, batch in itertools.product((8, 16), (4, 32), (8, 64), (1, 5)):
        a = (("b", "r", "s"), (batch, rows, inner))
        b = (("b", "s", "c"), (batch, inner, columns))
        assert pair_cost(a, b, {"b", "r", "c"})[1].flops == 2 * batch * rows * columns * inner
