"""Kappas of arrays and trees from kappas of parts: reshaping, blocks, shapes, whole models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lion_lyapunov._combine import scaled
from lion_lyapunov._kappa import Kappa, make_kappa, max_or_nan

PyTree = Any


def as_matrix(kappa: Kappa, *, output_axis: int = -1) -> Kappa:
    """A matrix kappa for arrays of more axes: `output_axis` are the columns, all others the rows.

    A convolution kernel [height, width, in, out] becomes [height width in, out].
    """

    def flatten(z):
        moved = jnp.moveaxis(z, output_axis, -1)
        return moved.reshape(-1, moved.shape[-1]), moved.shape

    def there(function):
        return lambda z: function(flatten(z)[0])

    def and_back(function):
        def run(z):
            matrix, shape = flatten(z)
            return jnp.moveaxis(function(matrix).reshape(shape), -1, output_axis)

        return run

    return _reshaped(kappa, f"as_matrix({kappa.name})", there, and_back)


def by_shape(
    choose: Callable[[tuple[int, ...]], Kappa], *, is_even: bool = True, name: str = "by_shape"
) -> Kappa:
    """The kappa that `choose` picks for the shape of each leaf; K is the sum over the leaves.

    Args:
      choose: from the shape of a leaf to its kappa, for example
        `lambda shape: nuclear() if len(shape) == 2 else l1()`.
      is_even: whether all kappas are even; `choose` is held to it.
      name: shown in messages.
    """

    def pick(z):
        kappa = choose(tuple(z.shape))
        if not isinstance(kappa, Kappa) or kappa.over_tree or kappa.is_even != is_even:
            raise ValueError(
                f"{name}: choose({tuple(z.shape)}) must be a kappa of one leaf with is_even="
                f"{is_even}, got {kappa!r}."
            )
        return kappa

    def gauge(y):
        function = pick(y).dual_norm
        if function is None:
            raise ValueError(f"{name}: {pick(y)!r} has no dual norm.")
        return function(y)

    return make_kappa(
        name=name,
        value=lambda z: pick(z).value(z),
        subgradient=lambda z: pick(z).subgradient(z),
        conjugate=lambda y: pick(y).conjugate(y),
        project=lambda y: pick(y).project(y),
        conjugate_subgradient=lambda y: pick(y).conjugate_subgradient(y),
        dual_norm=gauge,
        is_even=is_even,
        is_smooth=False,
        tie_rule="as in the kappa of each shape",
    )


def shape_scaled(kappa: Kappa, factor: Callable[[tuple[int, ...]], float]) -> Kappa:
    """`kappa` times a number that depends on the shape of the leaf, for steps that fit any width.

    Muon multiplies by sqrt(max(1, fan_out / fan_in)); the radius of the constraint then is that
    number over the weight decay.
    """
    return by_shape(
        lambda shape: scaled(kappa, factor(shape)),
        is_even=kappa.is_even,
        name=f"shape_scaled({kappa.name})",
    )


def batched(kappa: Kappa) -> Kappa:
    """The sum of `kappa` over the leading axis: one matrix per layer of a scanned stack."""

    def total(function):
        return lambda z: jnp.sum(jax.vmap(function)(z))

    out = _reshaped(kappa, f"batched({kappa.name})", total, jax.vmap)
    gauge = kappa.dual_norm
    worst = None if gauge is None else lambda y: max_or_nan(jax.vmap(gauge)(y))
    return make_kappa(**{**_fields(out), "dual_norm": worst})


def _reshaped(kappa: Kappa, name: str, scalar, array) -> Kappa:
    gauge = kappa.dual_norm
    return make_kappa(
        name=name,
        value=scalar(kappa.value),
        subgradient=array(kappa.subgradient),
        conjugate=scalar(kappa.conjugate),
        project=array(kappa.project),
        conjugate_subgradient=array(kappa.conjugate_subgradient),
        dual_norm=None if gauge is None else scalar(gauge),
        is_even=kappa.is_even,
        is_smooth=kappa.is_smooth,
        is_support=kappa.is_support,
        tie_rule=kappa.tie_rule,
    )


def _fields(kappa: Kappa) -> dict[str, Any]:
    return {name: getattr(kappa, name) for name in kappa.__dataclass_fields__}


def whole_tree(kappa: Kappa) -> Kappa:
    """`kappa` of all leaves as one vector: one norm, one ball, one threshold for the whole model.

    Without it a kappa acts on each leaf by itself, and K is the sum over the leaves.

    Args:
      kappa: a kappa of vectors, such as `l2()`.
    """
    if kappa.over_tree:
        raise ValueError(f"whole_tree: {kappa!r} already takes a whole tree.")

    def flat(function):
        return lambda tree: function(ravel_pytree(tree)[0])

    def tree_of(function):
        def run(tree):
            vector, unravel = ravel_pytree(tree)
            return unravel(function(vector))

        return run

    out = _reshaped(kappa, f"whole_tree({kappa.name})", flat, tree_of)
    return make_kappa(**{**_fields(out), "over_tree": True})


def blocks(kappas: PyTree) -> Kappa:
    """The sum of kappas over parts of a tree; the constraint is the product of theirs.

    Args:
      kappas: a pytree of kappas, a prefix of the tree of parameters:
        `blocks({"kernel": nuclear(), "bias": l1()})`. A kappa over a subtree acts on each leaf.
    """
    leaves, structure = jax.tree.flatten(kappas, is_leaf=lambda x: isinstance(x, Kappa))
    for leaf in leaves:
        if not isinstance(leaf, Kappa):
            raise TypeError(f"blocks: every leaf must be a kappa, got {leaf!r}.")

    def split(tree):
        return structure.flatten_up_to(tree)

    def total(field):
        def run(tree):
            parts = [field(k)(part) for k, part in zip(trees, split(tree))]
            return sum(parts[1:], parts[0])

        return run

    def each(field):
        return lambda tree: structure.unflatten(
            [field(k)(part) for k, part in zip(trees, split(tree))]
        )

    trees = [on_tree(kappa) for kappa in leaves]
    return make_kappa(
        name=f"blocks({', '.join(kappa.name for kappa in leaves)})",
        value=total(lambda k: k.value),
        subgradient=each(lambda k: k.subgradient),
        conjugate=total(lambda k: k.conjugate),
        project=each(lambda k: k.project),
        conjugate_subgradient=each(lambda k: k.conjugate_subgradient),
        dual_norm=None,
        is_even=all(kappa.is_even for kappa in leaves),
        is_smooth=all(kappa.is_smooth for kappa in leaves),
        is_support=all(kappa.is_support for kappa in leaves),
        over_tree=True,
        tie_rule="as in each block",
    )


def on_tree(kappa: Kappa) -> Kappa:
    """The same kappa as a function of a pytree: summed over the leaves unless it takes a tree."""
    if kappa.over_tree:
        return kappa

    def total(function):
        def run(tree):
            parts = [function(leaf) for leaf in jax.tree.leaves(tree)]
            return sum(parts[1:], parts[0]) if parts else jnp.zeros(())

        return run

    def each(function):
        return lambda tree: jax.tree.map(function, tree)

    gauge = kappa.dual_norm

    def largest(tree):
        assert gauge is not None
        return max_or_nan(jnp.stack([gauge(leaf) for leaf in jax.tree.leaves(tree)]))

    return Kappa(
        name=kappa.name,
        value=total(kappa.value),
        subgradient=each(kappa.subgradient),
        conjugate=total(kappa.conjugate),
        project=each(kappa.project),
        conjugate_subgradient=each(kappa.conjugate_subgradient),
        dual_norm=None if gauge is None else largest,
        is_even=kappa.is_even,
        is_smooth=kappa.is_smooth,
        is_support=kappa.is_support,
        over_tree=True,
        tie_rule=kappa.tie_rule,
    )
