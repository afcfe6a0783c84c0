"""The drops of a schedule as a short list of nodes, exact to about seven digits.

Every schedule law sums drop_k R(k, t) over the steps k <= t: 20 million terms for one cosine of
72,000 steps. Between two logged steps R is a smooth function of k, so the drops of a block are
replaced by as few nodes, with weights that integrate a parabola in k exactly against the very drops
of the block. Cliffs, and blocks with few drops, keep each drop as it is.
"""

import itertools
from typing import NamedTuple

import numpy as np

NODES = 3  # per block
BLOCK = 128  # steps, at most
CLIFF = 0.02  # of the peak: a larger drop in one step is a node of its own


class Pairs(NamedTuple):
    """One row per (logged point t, node k <= t)."""

    point: np.ndarray  # row of the point
    weight: np.ndarray  # drop eta_{k-1} - eta_k
    area: np.ndarray  # S_k(t) = sum_{k <= i <= t} eta_i
    elapsed: np.ndarray  # t - k + 1, steps
    rate: np.ndarray  # eta_k, floored at a millionth of the peak
    start_area: np.ndarray  # S1 at step k - 1


def nodes_of(rates, logged, *, exact=False, nodes_per_block=NODES):
    """(step k, weight) of the nodes of a schedule, and the block end that each waits for.

    Args:
      rates: [steps].
      logged: increasing steps at which the sum is wanted.
      exact: every non-zero drop is a node.
      nodes_per_block: 3 for seven digits, 1 for a first search.
    """
    drops = rates[:-1] - rates[1:]
    steps = np.arange(1, len(rates))
    changed = drops != 0
    if exact or not changed.any():
        return steps[changed], drops[changed], steps[changed]
    peak = np.max(rates)
    cliffs = steps[np.abs(drops) > CLIFF * peak]
    kinks = [int(np.argmax(rates))]
    edges = np.unique(np.concatenate([[0], logged, cliffs - 1, cliffs, kinks, [len(rates) - 1]]))
    nodes, weights, ends = [], [], []
    for low, high in itertools.pairwise(edges):
        pieces = -(-(high - low) // BLOCK)
        cuts = np.linspace(low, high, pieces + 1).astype(int)
        for first, last in zip(cuts[:-1] + 1, cuts[1:]):
            inside = np.arange(first, last + 1)
            here = inside[changed[inside - 1]]
            if len(here) > nodes_per_block:
                angles = (2 * np.arange(nodes_per_block) + 1) * np.pi / (2 * nodes_per_block)
                at = np.rint(first + (last - first) * (0.5 - 0.5 * np.cos(angles))).astype(int)
                weight = _lagrange(at, here) @ drops[here - 1]
            else:
                at, weight = here, drops[here - 1]
            nodes.append(at)
            weights.append(weight)
            ends.append(np.full(len(at), last))
    return np.concatenate(nodes), np.concatenate(weights), np.concatenate(ends)


def _lagrange(nodes, points):
    """Polynomials that are 1 at one node and 0 at the others, [nodes, points]."""
    rows = []
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        rows.append(np.prod((points[None, :] - others[:, None]) / (node - others)[:, None], axis=0))
    return np.array(rows)


def pairs_of(drop_rates, area_rates, logged, *, first_point=0, **options):
    """The pairs of one curve.

    Args:
      drop_rates: [steps], the schedule whose drops count.
      area_rates: [steps], the schedule whose sum is S1; they differ in the warm-up.
      logged: increasing steps of the points.
      options: as for `nodes_of`.
    """
    nodes, weights, ends = nodes_of(drop_rates, logged, **options)
    order = np.argsort(ends, kind="stable")
    nodes, weights, ends = nodes[order], weights[order], ends[order]
    counts = np.searchsorted(ends, logged, side="right")
    point = np.repeat(np.arange(len(logged)), counts)
    node = np.arange(len(point)) - np.repeat(np.cumsum(counts) - counts, counts)
    area = np.cumsum(area_rates)
    before = area - area_rates
    step, at = logged[point], nodes[node]
    floor = 1e-6 * np.max(drop_rates)
    return Pairs(
        point=point + first_point,
        weight=weights[node],
        area=area[step] - before[at],
        elapsed=(step - at + 1).astype(float),
        rate=np.maximum(drop_rates[at], floor),
        start_area=before[at],
    )
