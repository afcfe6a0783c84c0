"""A static model of time and memory, enough to rank the methods; nothing is compiled or run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr

# Rates of one CPU core, of the order of magnitude measured there. Only their ratio matters for a
# choice, and the choices are far apart: methods differ in powers of the width or of the outputs.
FLOPS_PER_S = 3e10
BYTES_PER_S = 6e9
ITEM = 4  # bytes of an entry; float64 doubles both times alike

ORDERS = (
    ((1, 3), (0, 1), (0, 1)),  # activations, cotangents, product
    ((0, 1), (0, 1), (0, 1)),  # Jacobian, Jacobian, product
    ((1, 3), (0, 2), (0, 1)),  # activations, then one cotangent, then the other
    ((1, 3), (1, 2), (0, 1)),
    ((0, 1), (0, 2), (0, 1)),  # one Jacobian, then cotangent, then activation of the other side
    ((0, 1), (1, 2), (0, 1)),
)


class Cost(NamedTuple):
    """Work and memory of a computation."""

    flops: float = 0.0
    traffic: float = 0.0  # entries read and written
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


def _pair(a: Shaped, b: Shaped, keep: set[str]) -> tuple[Shaped, float, float]:
    sizes = dict(zip(*a)) | dict(zip(*b))
    kept = tuple(letter for letter in sizes if letter in keep)
    result = (kept, tuple(sizes[letter] for letter in kept))
    flops = 2.0 * math.prod(sizes.values())
    return result, flops, math.prod(a[1]) + math.prod(b[1]) + math.prod(result[1])


def best_order(
    factors: Sequence[Shaped], out: Sequence[str]
) -> tuple[tuple[tuple[int, int], ...], Cost]:
    """The cheapest order of contracting cotangent, activation, cotangent, activation.

    Args:
      factors: letters and sizes of the four.
      out: letters of the result.
    Returns:
      Pairs as `ntk.empirical._layout.contract` takes them, and the predicted cost.
    """
    best = (ORDERS[0], Cost(flops=math.inf))
    for order in ORDERS:
        left, flops, traffic, memory = list(factors), 0.0, 0.0, 0.0
        for i, j in order:
            a, b = left[i], left[j]
            left = [factor for k, factor in enumerate(left) if k not in (i, j)]
            keep = set(out).union(*(factor[0] for factor in left))
            product, more_flops, more_traffic = _pair(a, b, keep)
            flops, traffic = flops + more_flops, traffic + more_traffic
            memory = max(memory, more_traffic * ITEM)
            left.append(product)
        cost = Cost(flops, traffic, memory)
        if cost.seconds < best[1].seconds:
            best = (order, cost)
    return best


def forward_cost(jaxpr: Jaxpr) -> Cost:
    """Cost of evaluating a jaxpr; memory is that of all intermediate values.

    Results are counted, not what is read: weights are read once for a whole batch of rows.
    """
    flops = traffic = memory = 0.0
    for eqn in jaxpr.eqns:
        inner = [j for value in eqn.params.values() for j in _jaxprs(value)]
        if inner:
            repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            costs = [forward_cost(j) for j in inner]
            flops += repeats * max(c.flops for c in costs)
            traffic += repeats * max(c.traffic for c in costs)
            memory += repeats * max(c.memory for c in costs)
            continue
        out = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        flops += _flops(eqn, out)
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


def _flops(eqn: Any, out: float) -> float:
    if eqn.primitive.name == "dot_general":
        (contracting, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * out * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracting)
    if eqn.primitive.name == "conv_general_dilated":
        rhs_spec = eqn.params["dimension_numbers"][1]
        shape = eqn.invars[1].aval.shape
        return 2.0 * out * math.prod(shape[axis] for axis in rhs_spec[1:])
    return float(out)
