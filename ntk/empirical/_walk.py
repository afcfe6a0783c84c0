"""The walk over a jaxpr that finds where each weight is used, and opens those places.

A parameter is structured when its only use, behind reshapes, transposes and scalar factors, is one
site (`ntk.empirical._sites`), inside any number of scans. The walk then adds a perturbation to the
site's result, so that one backward pass gives the cotangents there, and hands out the activation.
Every other parameter is an ordinary argument of that backward pass, so nothing is unsupported.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntk.empirical._scan import scan_counts
from ntk.empirical._sites import RULES, Site

Array = jax.Array
Path = tuple[int, ...]

CONSTANT = "constant"  # does not depend on the parameters
ACTIVE = "active"  # depends on them in some way


@dataclasses.dataclass(frozen=True)
class Weight:
    """Tag of a value that is one parameter up to the order of its entries and a scalar factor."""

    leaf: int
    scale: Any
    loops: tuple[tuple[int, bool], ...] = ()  # of enclosing scans: length, and is it sliced there


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Tag of an array filled with one constant scalar."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Use:
    """The only place where a parameter is used."""

    path: Path
    site: Site
    loops: tuple[tuple[int, bool], ...]


SAME_ENTRIES = {
    "reshape",
    "transpose",
    "squeeze",
    "rev",
    "copy",
    "copy_p",
    "name",
    "sharding_constraint",
    "optimization_barrier",
}
INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "remat2"}


def evaluate(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    out = eqn.primitive.bind(*values, **bound)
    return list(out) if eqn.primitive.multiple_results else [out]


def inner_jaxpr(eqn: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """The jaxpr that an inlined call runs, and its constants."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


class Walker:
    """Evaluates a jaxpr with tagged values.

    Args:
      structured: parameter number to its use; those sites are opened. None only records uses.
    """

    def __init__(self, structured: dict[int, Use] | None):
        self.structured = structured
        self.uses: dict[int, dict[Path, Use | None]] = {}

    def record(self, tag: Any, path: Path, use: Use | None) -> None:
        """Notes a use of a parameter; None is one without structure."""
        if isinstance(tag, Weight):
            self.uses.setdefault(tag.leaf, {})[path] = use

    def run(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        values: Sequence[Any],
        tags: Sequence[Any],
        shifts: dict[int, Array],
        path: Path = (),
    ) -> tuple[list[Any], list[Any], dict[int, Array]]:
        """Results, their tags, and the activations of the opened sites by parameter."""
        env: dict[Any, tuple[Any, Any]] = {}
        for var, value in zip(jaxpr.constvars, consts):
            env[var] = (value, CONSTANT)
        for var, value, tag in zip(jaxpr.invars, values, tags):
            env[var] = (value, tag)
        activations: dict[int, Array] = {}

        def read(atom: Any) -> tuple[Any, Any]:
            return (atom.val, CONSTANT) if isinstance(atom, Literal) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            pairs = [read(atom) for atom in eqn.invars]
            values_in, tags_in = [p[0] for p in pairs], [p[1] for p in pairs]
            outs, out_tags, found = self.step(eqn, values_in, tags_in, shifts, (*path, number))
            activations |= found
            for var, value, tag in zip(eqn.outvars, outs, out_tags):
                env[var] = (value, tag)
        results = [read(atom) for atom in jaxpr.outvars]
        return [r[0] for r in results], [r[1] for r in results], activations

    def step(
        self, eqn: Any, values: list, tags: list, shifts: dict[int, Array], path: Path
    ) -> tuple[list[Any], list[Any], dict[int, Array]]:
        """One equation: what comes out, how it depends on the parameters, activations."""
        name = eqn.primitive.name
        weights = [k for k, tag in enumerate(tags) if isinstance(tag, Weight)]
        if not weights:
            outs = evaluate(eqn, values)
            constant = all(tag is CONSTANT or isinstance(tag, Uniform) for tag in tags)
            tag: Any = CONSTANT if constant else ACTIVE
            if name == "broadcast_in_dim" and constant and eqn.invars[0].aval.ndim == 0:
                tag = Uniform(values[0])
            return outs, [tag] * len(outs), {}
        if name in INLINED:
            inner, consts = inner_jaxpr(eqn)
            return self.run(inner, consts, values, tags, shifts, path)
        if name == "scan":
            return self.scan(eqn, values, tags, shifts, path)
        if len(weights) == 1:
            at = weights[0]
            view = self.view(eqn, values, tags, at)
            if view is not None:
                return evaluate(eqn, values), [view], {}
            if name in RULES and (site := RULES[name](eqn, at)) is not None:
                return self.site(eqn, values, tags, shifts, path, at, site)
        for k in weights:
            self.record(tags[k], (*path, k), None)
        outs = evaluate(eqn, values)
        return outs, [ACTIVE] * len(outs), {}

    def view(self, eqn: Any, values: list, tags: list, at: int) -> Weight | None:
        """The tag of the result where an equation only moves, casts or scales a weight."""
        name, weight = eqn.primitive.name, tags[at]
        operand, result = eqn.invars[at].aval, eqn.outvars[0].aval
        if name in SAME_ENTRIES and len(tags) == 1:
            return weight
        if name == "broadcast_in_dim" and operand.size == result.size:
            return weight
        if name == "convert_element_type" and jax.numpy.issubdtype(result.dtype, jax.numpy.inexact):
            return weight
        if name == "neg":
            return dataclasses.replace(weight, scale=-weight.scale)
        if name == "mul" or (name == "div" and at == 0):
            other = tags[1 - at]
            if isinstance(other, Uniform):
                factor = other.value
            elif other is CONSTANT and math.prod(eqn.invars[1 - at].aval.shape) == 1:
                factor = jax.numpy.reshape(values[1 - at], ())
            else:
                return None
            scale = weight.scale * factor if name == "mul" else weight.scale / factor
            return dataclasses.replace(weight, scale=scale)
        return None

    def site(
        self,
        eqn: Any,
        values: list,
        tags: list,
        shifts: dict[int, Array],
        path: Path,
        at: int,
        site: Site,
    ) -> tuple[list[Any], list[Any], dict[int, Array]]:
        """Records a site; opens it when its parameter is structured."""
        weight = tags[at]
        self.record(weight, path, Use(path, site, weight.loops))
        outs = evaluate(eqn, values)
        if self.structured is None:
            return outs, [ACTIVE], {}
        activation = site.activation(values[1 - at])
        activation = activation * jax.numpy.asarray(weight.scale, activation.dtype)
        return [outs[0] + shifts[weight.leaf]], [ACTIVE], {weight.leaf: activation}

    def scan(
        self, eqn: Any, values: list, tags: list, shifts: dict[int, Array], path: Path
    ) -> tuple[list[Any], list[Any], dict[int, Array]]:
        """A scan: sites inside are opened once per iteration, by one more leading axis."""
        params = eqn.params
        closed, length = params["jaxpr"], params["length"]
        first, num_carry = scan_counts(eqn)
        second = first + num_carry
        for k in range(first, second):
            self.record(tags[k], (*path, k), None)
        inner_tags = []
        for k, tag in enumerate(tags):
            if first <= k < second:
                inner_tags.append(ACTIVE)
            elif isinstance(tag, Weight):
                inner_tags.append(
                    dataclasses.replace(tag, loops=(*tag.loops, (length, k >= second)))
                )
            elif k >= second and isinstance(tag, Uniform):
                inner_tags.append(CONSTANT)
            else:
                inner_tags.append(tag)
        inside = {
            leaf: shifts[leaf]
            for leaf, use in (self.structured or {}).items()
            if use.path[: len(path)] == path
        }

        def body(carry, slices):
            xs, moved = slices
            outs, _, activations = self.run(
                closed.jaxpr,
                closed.consts,
                [*values[:first], *carry, *xs],
                inner_tags,
                moved,
                path,
            )
            return outs[:num_carry], (outs[num_carry:], activations)

        carry, (ys, activations) = jax.lax.scan(
            body,
            values[first:second],
            (values[second:], inside),
            length=length,
            reverse=params["reverse"],
            unroll=params.get("unroll", 1),
        )
        outs = [*carry, *ys]
        return outs, [ACTIVE] * len(outs), activations


def find_uses(closed: ClosedJaxpr, num_params: int, trainable: Sequence[bool]) -> dict[int, Use]:
    """The parameters (first `num_params` inputs) that have exactly one use, a site."""
    walker = Walker(None)
    tags = [
        (Weight(k, 1.0) if trainable[k] else CONSTANT) if k < num_params else CONSTANT
        for k in range(len(closed.jaxpr.invars))
    ]

    def trace(*values):
        outs, out_tags, _ = walker.run(closed.jaxpr, closed.consts, values, tags, {})
        for number, tag in enumerate(out_tags):
            walker.record(tag, (-1, number), None)
        return outs

    jax.eval_shape(trace, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals))
    found = {}
    for leaf, uses in walker.uses.items():
        only = next(iter(uses.values()))
        if len(uses) == 1 and only is not None:
            found[leaf] = only
    return found
