"""A static model of time and memory, enough to rank the methods; nothing is compiled or run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr

from ntk.empirical._layout import matrix_order, product

# Rates of one CPU core, of the order of magnitude measured there. Only their ratios matter for a
# choice, and the choices are far apart: methods differ in powers of the width or of the outputs.
FLOPS_PER_S = 1e11  # of a matrix product
BYTES_PER_S = 2e10  # read or written in order
ITEM = 4  # bytes of an entry; float64 doubles both times alike
COPY = 2  # entries read in order in the time in which rows of entries change places, for each
REORDER = 8  # the same where neighbours are torn apart
CALL = 250  # entries read in order in the time in which one small matrix product starts
TILE = 4  # a matrix product works on blocks of at least so many rows and columns
# A convolution with a filter of its own for every example (a mapped weight gradient or tangent)
# runs as one with groups, slower than a matrix product; where it has groups already, much slower.
FILTERS = 3.0
GROUPS = 100.0

JACOBIANS = ((0, 1), (0, 1), (0, 1))  # Jacobian, Jacobian, product
ORDERS = (
    ((1, 3), (0, 1), (0, 1)),  # activations, cotangents, product
    JACOBIANS,
    ((1, 3), (0, 2), (0, 1)),  # activations, then one cotangent, then the other
    ((1, 3), (1, 2), (0, 1)),
    ((0, 1), (0, 2), (0, 1)),  # one Jacobian, then cotangent, then activation of the other side
    ((0, 1), (1, 2), (0, 1)),
)


class Cost(NamedTuple):
    """Work and memory of a computation."""

    flops: float = 0.0
    traffic: float = 0.0  # entries read and written in order
    memory: float = 0.0  # bytes alive at the peak, beside the result

    @property
    def seconds(self) -> float:
        """Predicted time."""
        return self.flops / FLOPS_PER_S + ITEM * self.traffic / BYTES_PER_S

    def then(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(
            self.flops + other.flops,
            self.traffic + other.traffic,
            max(self.memory, other.memory),
        )

    def times(self, count: float) -> "Cost":
        """The same work `count` times, one at a time."""
        return Cost(self.flops * count, self.traffic * count, self.memory)


Shaped = tuple[tuple[str, ...], tuple[int, ...]]  # letters and sizes


def pair_cost(a: Shaped, b: Shaped, keep: set[str]) -> tuple[Shaped, Cost]:
    """Letters and sizes of a product of two factors, and its cost as a batch of matrices."""
    sizes = dict(zip(*a)) | dict(zip(*b))
    roles = product(a[0], b[0], sorted(keep))
    count, inner, rows, columns = (
        math.prod(sizes[k] for k in group)
        for group in (roles.shared, roles.summed, roles.rows, roles.columns)
    )
    entries = count * rows * columns
    plain = math.prod(a[1]) + math.prod(b[1]) + entries
    # Without rows and columns, or without a sum, it is a reduction or a product entry by entry.
    if (rows == columns == 1) or (inner == 1 and 1 in (rows, columns)):
        padded, calls = entries * inner, 0
    else:
        padded = count * max(rows, TILE) * max(columns, TILE) * max(inner, TILE)
        calls = count if count > 1 else 0
    moved = 0.0
    for letters, shape in (a, b):
        _, still, together = matrix_order(letters, shape, roles.shared, roles.summed)
        moved += 0.0 if still else (COPY if together else REORDER) * math.prod(shape)
    cost = Cost(2.0 * padded, plain + moved + CALL * calls, ITEM * plain)
    return (roles.letters, tuple(sizes[k] for k in roles.letters)), cost


def best_order(
    factors: Sequence[Shaped], out: Sequence[str], *, same: bool = False
) -> tuple[tuple[tuple[int, int], ...], Cost]:
    """The cheapest order of contracting cotangent, activation, cotangent, activation.

    Args:
      factors: letters and sizes of the four.
      out: letters of the result.
      same: whether the last two are the first two, so that what is made of them alone is shared.
    Returns:
      Pairs as `ntk.empirical._layout.contract` takes them, and the predicted cost.
    """
    best = (ORDERS[0], Cost(flops=math.inf))
    for order in ORDERS:
        left, cost = list(factors), Cost()
        for number, (i, j) in enumerate(order):
            a, b = left[i], left[j]
            left = [factor for k, factor in enumerate(left) if k not in (i, j)]
            keep = set(out).union(*(factor[0] for factor in left))
            result, step = pair_cost(a, b, keep)
            if not (same and order == JACOBIANS and number == 1):
                cost = cost.then(step)
            left.append(result)
        cost = cost.then(Cost(traffic=_arrange(left[0], out)))
        if cost.seconds < best[1].seconds:
            best = (order, cost)
    return best


def _arrange(factor: Shaped, out: Sequence[str]) -> float:
    """Work of bringing the axes of a result in their order."""
    sizes = dict(zip(*factor))
    now, then = ([k for k in letters if sizes[k] > 1] for letters in (factor[0], out))
    if now == then:
        return 0.0
    return (COPY if now[-1] == then[-1] else REORDER) * math.prod(factor[1])


def forward_cost(jaxpr: Jaxpr, *, own_filters: bool = False) -> Cost:
    """Cost of evaluating a jaxpr; memory is that of all intermediate values.

    Results are counted, not what is read: weights are read once for a whole batch of rows.

    Args:
      jaxpr: of one example.
      own_filters: whether every example has filters of its own.
    """
    flops = traffic = memory = 0.0
    for eqn in jaxpr.eqns:
        inner = [j for value in eqn.params.values() for j in _jaxprs(value)]
        if inner:
            repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            costs = [forward_cost(j, own_filters=own_filters) for j in inner]
            flops += repeats * max(c.flops for c in costs)
            traffic += repeats * max(c.traffic for c in costs)
            memory += repeats * max(c.memory for c in costs)
            continue
        out = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        flops += _flops(eqn, out, own_filters)
        traffic += out
        memory += ITEM * out
    return Cost(flops, traffic, memory)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [j for item in value for j in _jaxprs(item)]
    return []


def _flops(eqn: Any, out: float, own_filters: bool) -> float:
    if eqn.primitive.name == "dot_general":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * out * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracting)
    if eqn.primitive.name == "conv_general_dilated":
        rhs_spec = eqn.params["dimension_numbers"][1]
        shape = eqn.invars[1].aval.shape
        flops = 2.0 * out * math.prod(shape[axis] for axis in rhs_spec[1:])
        grouped = eqn.params["feature_group_count"] > 1
        return flops * ((GROUPS if grouped else FILTERS) if own_filters else 1.0)
    return float(out)
