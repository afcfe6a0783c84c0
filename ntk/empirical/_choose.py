"""The choice of a method, and of block sizes, from predicted time and memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from ntk.empirical._arguments import NtkImplementation
from ntk.empirical._cost import ITEM, Cost, forward_cost
from ntk.empirical._layout import Layout
from ntk.empirical._problem import Side
from ntk.empirical._structured import Plan, contraction_cost

Array = jax.Array


# Structured derivatives contain Jacobian contraction as one of their orders and run convolutions'
# weight gradients as matrix products; another method must promise a real gain to replace them.
# Where nothing is structured they have no such head start.
HEAD_START = 1.5


def _handicap(method: NtkImplementation, plan: Plan) -> float:
    structured = method is NtkImplementation.STRUCTURED_DERIVATIVES
    return HEAD_START if plan.first and not structured else 1.0


class Decision(NamedTuple):
    """What to run."""

    method: NtkImplementation
    blocks: tuple[int, int] | None  # examples of each side at a time; None: all
    costs: dict[NtkImplementation, Cost]


def choose(
    side1: Side,
    side2: Side,
    params: list[Array],
    trainable: Sequence[bool],
    layouts: Sequence[Layout],
    plan: Plan,
    method: NtkImplementation,
    max_memory: float | None,
) -> Decision:
    """The cheapest method that fits, in blocks where none does."""
    n1, n2 = side1.size or 1, side2.size or 1
    limit = math.inf if max_memory is None else max_memory

    def costs(m1: int, m2: int) -> dict[NtkImplementation, Cost]:
        return predict_costs(side1, side2, params, trainable, layouts, plan, m1, m2)

    whole = costs(n1, n2)
    allowed = list(whole) if method is NtkImplementation.AUTO else [method]
    fitting = [m for m in allowed if whole[m].memory <= limit]
    if fitting:
        return Decision(
            min(fitting, key=lambda m: _handicap(m, plan) * whole[m].seconds), None, whole
        )
    sizes = (n1, n2)
    best = min(allowed, key=lambda m: whole[m].memory)
    while sizes != (1, 1) and side1.mapped:
        sizes = (max(1, math.ceil(sizes[0] / 2)), max(1, math.ceil(sizes[1] / 2)))
        now = costs(*sizes)
        fitting = [m for m in allowed if now[m].memory <= limit]
        if fitting:
            best = min(fitting, key=lambda m: _handicap(m, plan) * now[m].seconds)
            break
        best = min(allowed, key=lambda m: now[m].memory)
    return Decision(best, sizes if side1.mapped else None, whole)


def predict_costs(
    side1: Side,
    side2: Side,
    params: list[Array],
    trainable: Sequence[bool],
    layouts: Sequence[Layout],
    plan: Plan,
    n1: int,
    n2: int,
) -> dict[NtkImplementation, Cost]:
    """Predicted cost of each method for n1 and n2 examples (1 where the side is not mapped)."""
    jaxprs = [side.jaxpr(params).jaxpr for side in (side1, side2)]
    forward = [forward_cost(jaxpr) for jaxpr in jaxprs]
    mapped = [forward_cost(jaxpr, own_filters=True) for jaxpr in jaxprs]
    distinct = 1 if side2 is side1 else 2
    counts = (n1, n2)
    sides = (side1, side2)
    sizes = [p.size for p, live in zip(params, trainable) if live]
    ordinary = [
        p.size for k, (p, live) in enumerate(zip(params, trainable)) if live and k not in plan.first
    ]
    weights = sum(sizes)
    back_cost, row_cost, site_cost, products = Cost(), Cost(), Cost(), Cost()
    memory_rows = memory_sites = 0.0
    for number, layout in enumerate(layouts):
        outs = [math.prod(side.example_shapes()[number]) for side in sides]
        for k in range(distinct):
            repeat = counts[k] * outs[k]
            back_cost = back_cost.then(forward[k].times(repeat))
            # weight gradients cost as much again, and are written once per row, or added up in
            # every iteration of a scan around the weight
            row_cost = row_cost.then(forward[k].times(repeat)).then(mapped[k].times(repeat))
            added = sum(
                2
                * params[leaf].size
                * math.prod(length for length, sliced in use.loops if not sliced)
                for leaf, use in (plan.first, plan.second)[k].items()
                if use.loops
            )
            row_cost = row_cost.then(Cost(traffic=repeat * (weights + added)))
            memory_rows += ITEM * repeat * weights
            site_rows = sum(
                math.prod(u.site.output_shape) * math.prod(t for t, _ in u.loops)
                for u in (plan.first, plan.second)[k].values()
            )
            memory_sites += ITEM * repeat * (site_rows + sum(ordinary)) + repeat * 0.5 * (
                forward[k].memory
            )
            if ordinary:
                share = sum(ordinary) / max(weights, 1)
                site_cost = site_cost.then(
                    Cost(forward[k].flops * repeat * share, repeat * sum(ordinary))
                )
        entries = _pairs(layout, counts, sides, number)
        row_cost = row_cost.then(
            Cost(2.0 * entries * weights, entries * len(sizes) + 2 * n1 * outs[0] * weights)
        )
        site_cost = site_cost.then(Cost(2.0 * entries * sum(ordinary), entries * len(ordinary)))
        shapes = [_rows_shape(side, number, count) for side, count in zip(sides, counts)]
        for leaf in plan.first:
            site_cost = site_cost.then(
                contraction_cost(
                    layout,
                    shapes[0],
                    shapes[1],
                    side1.mapped,
                    plan.first[leaf],
                    plan.second[leaf],
                    same=side2 is side1,
                )
            )
        pairs = n1 * n2 if layout.rows1[:1] != layout.rows2[:1] or not side1.mapped else n1
        columns = Cost(
            (forward[0].flops + mapped[0].flops) * pairs * outs[1]
            + (forward[1].flops + mapped[1].flops) * n2 * outs[1],
            2.0 * forward[0].traffic * pairs * outs[1] + 3.0 * n2 * outs[1] * weights,
        )
        products = products.then(columns)
    # Activations of the forward pass, and one copy of the weights (products transpose them).
    acts = sum(c.memory * n for c, n in zip(forward, counts)) + ITEM * weights
    chunk = min(64e6, ITEM * n2 * max(math.prod(s) for s in side2.example_shapes()) * weights)
    structured = back_cost.then(site_cost)
    wide = max(p.dtype.itemsize for p in params) / ITEM
    costs = {
        NtkImplementation.STRUCTURED_DERIVATIVES: structured._replace(
            memory=memory_sites + site_cost.memory + acts
        ),
        NtkImplementation.JACOBIAN_CONTRACTION: row_cost._replace(memory=2 * memory_rows + acts),
        NtkImplementation.NTK_VECTOR_PRODUCTS: products._replace(memory=2 * chunk + acts),
    }
    return {method: cost._replace(memory=wide * cost.memory) for method, cost in costs.items()}


def _rows_shape(side: Side, number: int, count: int) -> tuple[int, ...]:
    shape = side.example_shapes()[number]
    return (count, *shape) if side.mapped else shape


def _pairs(layout: Layout, counts: Sequence[int], sides: Sequence[Side], number: int) -> float:
    """Multiply-adds per parameter entry when two Jacobians are contracted."""
    sizes: dict[str, int] = {}
    for rows, side, count in zip((layout.rows1, layout.rows2), sides, counts):
        sizes |= dict(zip(rows, _rows_shape(side, number, count)))
    return float(math.prod(sizes.values()))
