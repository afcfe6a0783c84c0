"""Structured derivatives: cotangents at the sites, contracted with activations."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.empirical._cost import Cost, best_order
from ntk.empirical._layout import Factor, Layout, arrange, contract, multiply
from ntk.empirical._problem import Side
from ntk.empirical._sites import Site
from ntk.empirical._walk import ACTIVE, CONSTANT, Use, Walker, Weight, find_uses

Array = jax.Array


class Plan(NamedTuple):
    """Which parameters are structured, at which sites, on both sides."""

    first: dict[int, Use]
    second: dict[int, Use]


def make_plan(side1: Side, side2: Side, params: list[Array], trainable: Sequence[bool]) -> Plan:
    """Finds the parameters whose sites fit together on the two sides."""
    first = find_uses(side1.jaxpr(params), len(params), trainable)
    if side2 is side1:
        return Plan(first, first)
    second = find_uses(side2.jaxpr(params), len(params), trainable)
    common = [leaf for leaf in first if leaf in second and _fit(first[leaf], second[leaf])]
    return Plan({k: first[k] for k in common}, {k: second[k] for k in common})


def _fit(use1: Use, use2: Use) -> bool:
    """Whether the shared axes of two sites are the same axes of the weight."""
    shape1 = dict(zip(use1.site.output_letters, use1.site.split_shape))
    shape2 = dict(zip(use2.site.output_letters, use2.site.split_shape))
    inner1 = dict(zip(use1.site.activation_letters, use1.site.activation_shape))
    inner2 = dict(zip(use2.site.activation_letters, use2.site.activation_shape))
    if set(shape1) != set(shape2) or set(inner1) != set(inner2) or use1.path != use2.path:
        return False
    shared = [k for k in (*shape1, *inner1) if k not in use1.site.free]
    same = all(shape1.get(k, inner1.get(k)) == shape2.get(k, inner2.get(k)) for k in shared)
    kinds = [kind for _, kind in use1.loops] == [kind for _, kind in use2.loops]
    sliced = all(a == b or not kind for (a, kind), (b, _) in zip(use1.loops, use2.loops))
    return same and kinds and sliced and use1.site.free == use2.site.free


class Rows(NamedTuple):
    """Derivatives of one output leaf on one side; leading axes: mapped, then the output's."""

    cotangents: dict[int, Array]  # of structured parameters, at their sites
    jacobians: list[Array | None]  # of the others; None where it is not a number to train


def derivatives(
    side: Side, params: list[Array], trainable: Sequence[bool], uses: dict[int, Use]
) -> tuple[list[Rows], dict[int, Array]]:
    """Rows of every output leaf, and the activations at the opened sites."""
    closed = side.jaxpr(params)
    plain = [k for k in range(len(params)) if trainable[k] and k not in uses]
    shapes = side.example_shapes()

    def example(data: list[Array]) -> tuple[list[tuple[Any, Any]], dict[int, Array]]:
        def forward(shifts: dict[int, Array], ordinary: list[Array]):
            leaves = list(params)
            for k, leaf in zip(plain, ordinary):
                leaves[k] = leaf
            tags: list[Any] = [
                Weight(k, 1.0) if k in uses else (ACTIVE if trainable[k] else CONSTANT)
                for k in range(len(params))
            ]
            tags += [CONSTANT] * len(data)
            walker = Walker(uses)
            outs, _, activations = walker.run(
                closed.jaxpr, closed.consts, [*leaves, *data], tags, shifts
            )
            return outs, activations

        shifts = {k: _zero_shift(use) for k, use in uses.items()}
        outs, vjp, activations = jax.vjp(forward, shifts, [params[k] for k in plain], has_aux=True)
        found = []
        for number, out in enumerate(outs):
            basis = jnp.eye(out.size, dtype=out.dtype).reshape((out.size, *out.shape))

            def pull(row, number=number):
                cotangents = [jnp.zeros_like(o) for o in outs]
                cotangents[number] = row
                return vjp(cotangents)

            found.append(jax.vmap(pull)(basis))
        return found, activations

    results, activations = side.map(example)
    lead = 1 if side.mapped else 0
    rows = []
    for (cotangents, jacobians), shape in zip(results, shapes):
        split = lambda a, shape=shape: a.reshape((*a.shape[:lead], *shape, *a.shape[lead + 1 :]))  # noqa: E731
        full: list[Array | None] = [None] * len(params)
        for k, jacobian in zip(plain, jacobians):
            full[k] = split(jacobian)
        rows.append(Rows({k: split(c) for k, c in cotangents.items()}, full))
    return rows, activations


def _zero_shift(use: Use) -> Array:
    """A perturbation of a site's result, one per iteration of the scans around it."""
    loops = tuple(length for length, _ in use.loops)
    return jnp.zeros((*loops, *use.site.output_shape), use.site.output_dtype)


def names(use: Use, rows: Sequence[str], second: bool, mapped: bool):
    """Letters of the cotangent and of the activation of a site on one side."""
    own = lambda letter: letter + "'" if second else letter  # noqa: E731
    loops = [
        f"t{depth}" if sliced else own(f"t{depth}") for depth, (_, sliced) in enumerate(use.loops)
    ]
    site = use.site
    outputs = [own(k) if k in site.free else k for k in site.output_letters]
    inputs = [own(k) if k in site.free else k for k in site.activation_letters]
    return (*rows, *loops, *outputs), (*rows[: int(mapped)], *loops, *inputs)


def factor_shapes(use: Use, rows_shape: Sequence[int], mapped: bool):
    """Shapes of the cotangent and of the activation of a site on one side."""
    loops = [length for length, _ in use.loops]
    site: Site = use.site
    cotangent = (*rows_shape, *loops, *site.split_shape)
    return cotangent, (*rows_shape[: int(mapped)], *loops, *site.activation_shape)


def site_kernel(
    layout: Layout, mapped: bool, use1: Use, use2: Use, one: tuple[Any, Any], two: tuple[Any, Any]
) -> Array:
    """The contribution of one structured parameter, from (cotangent, activation) of each side."""
    factors = []
    for use, rows, (cotangent, activation), second in (
        (use1, layout.rows1, one, False),
        (use2, layout.rows2, two, True),
    ):
        c_names, a_names = names(use, rows, second, mapped)
        c_shape, a_shape = factor_shapes(use, cotangent.shape[: len(rows)], mapped)
        factors.append(Factor(cotangent.reshape(c_shape), c_names))
        factors.append(Factor(activation.reshape(a_shape), a_names))
    shapes = [(f.letters, f.array.shape) for f in factors]
    order, _ = best_order(shapes, layout.entries, same=one[0] is two[0])
    return contract(factors, layout.entries, order)


def jacobian_kernel(layout: Layout, jacobian1: Array, jacobian2: Array) -> Array:
    """The contribution of one ordinary parameter, from its Jacobians."""
    flat1 = jacobian1.reshape((*jacobian1.shape[: len(layout.rows1)], -1))
    flat2 = jacobian2.reshape((*jacobian2.shape[: len(layout.rows2)], -1))
    product = multiply(
        Factor(flat1, (*layout.rows1, "w")), Factor(flat2, (*layout.rows2, "w")), layout.entries
    )
    return arrange(product, layout.entries)


def structured_kernels(
    side1: Side,
    side2: Side,
    params: list[Array],
    trainable: Sequence[bool],
    layouts: Sequence[Layout],
    plan: Plan,
) -> list[Array]:
    """The tangent kernel of every output leaf."""
    rows1, activations1 = derivatives(side1, params, trainable, plan.first)
    if side2 is side1:
        rows2, activations2 = rows1, activations1
    else:
        rows2, activations2 = derivatives(side2, params, trainable, plan.second)
    kernels = []
    for layout, first, second in zip(layouts, rows1, rows2):
        terms = []
        for leaf in range(len(params)):
            if leaf in plan.first:
                terms.append(
                    site_kernel(
                        layout,
                        side1.mapped,
                        plan.first[leaf],
                        plan.second[leaf],
                        (first.cotangents[leaf], activations1[leaf]),
                        (second.cotangents[leaf], activations2[leaf]),
                    )
                )
            elif first.jacobians[leaf] is not None:
                terms.append(jacobian_kernel(layout, first.jacobians[leaf], second.jacobians[leaf]))
        kernels.append(functools.reduce(jnp.add, terms) / layout.normalizer)
    return kernels


def contraction_cost(
    layout: Layout,
    shape1: Sequence[int],
    shape2: Sequence[int],
    mapped: bool,
    use1: Use,
    use2: Use,
    *,
    same: bool,
) -> Cost:
    """Predicted cost of `site_kernel` for rows of the given shapes."""
    factors = []
    for use, rows, shape, second in (
        (use1, layout.rows1, shape1, False),
        (use2, layout.rows2, shape2, True),
    ):
        c_names, a_names = names(use, rows, second, mapped)
        c_shape, a_shape = factor_shapes(use, shape, mapped)
        factors += [(c_names, c_shape), (a_names, a_shape)]
    return best_order(factors, layout.entries, same=same)[1]
