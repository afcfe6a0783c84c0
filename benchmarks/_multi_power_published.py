"""The published procedure for the Multi-Power law, written from its description, as the peer.

Luo et al. 2025, arXiv:2503.12811: 135 starts of L0 + A S1^-alpha - B (peak - eta) by L-BFGS-B with
numeric gradients, then one run of AdamW on the whole law, in a loop over logged steps. Gradients
of the second stage are written out here, which costs less than the automatic ones of the original.
"""

import dataclasses
import itertools
import time

import numpy as np
from scipy import optimize

DELTA = 1e-3
RATES = np.array([5e-2, 5e-2, 5e-3, 5e-2, 5e-2, 5e-3, 5e-3])  # L0 A alpha B C beta gamma
WEIGHT_DECAY = 0.01
STEPS, PATIENCE = 200, 20


@dataclasses.dataclass(frozen=True)
class Published:
    """CPU seconds of both stages (the first scaled up to all starts), and what came out."""

    first_stage_s: float
    second_stage_s: float
    steps: int
    objective: float
    params: np.ndarray


def run(curves, *, starts_run=135, steps=STEPS) -> Published:
    """Both stages on a list of curves; `starts_run` of the 135 starts are run."""
    begin = time.process_time()
    best = _first_stage(curves, starts_run)
    first = (time.process_time() - begin) * 135 / starts_run
    begin = time.process_time()
    taken, objective, params = _second_stage(curves, np.concatenate([best, [1.0, 0.5, 0.5]]), steps)
    return Published(first, time.process_time() - begin, taken, objective, params)


def _first_stage(curves, starts_run):
    area = np.concatenate([np.cumsum(c.learning_rates)[c.steps] for c in curves])
    rate = np.concatenate([c.learning_rates[c.steps] for c in curves])
    losses = np.concatenate([c.losses for c in curves])
    peak = rate.max()

    def value(x):
        predicted = x[0] + x[1] * area ** -x[2] - x[3] * (peak - rate)
        return np.sum(_huber(np.log(np.maximum(predicted, 1e-6)) - np.log(losses)))

    slope, offset = np.polyfit(np.log(area), np.log(losses - losses.min() + 0.1), 1)
    grid = list(
        itertools.product(
            losses.min() + np.linspace(-0.2, 0.2, 5),
            np.exp(offset) * np.array([0.5, 1.0, 1.5]),
            -slope * np.array([0.5, 1.0, 1.5]),
            (100.0, 550.0, 1000.0),
        )
    )
    chosen = np.random.default_rng(0).permutation(len(grid))[:starts_run]
    options = {"ftol": 1e-9, "gtol": 1e-6, "maxiter": 100_000}
    found = [
        optimize.minimize(
            value, grid[i], method="L-BFGS-B", bounds=[(0, None)] * 4, options=options
        )
        for i in chosen
    ]
    return min(found, key=lambda one: one.fun).x


def _second_stage(curves, x, steps):
    """(steps taken, best objective, its parameters) of AdamW."""
    moment, square = np.zeros(7), np.zeros(7)
    best, best_x, since = np.inf, x, 0
    for step in range(1, steps + 1):
        value, gradient = objective(curves, x)
        if value < best:
            best, best_x, since = value, x.copy(), 0
        else:
            since += 1
            if since >= PATIENCE:
                return step, best, best_x
        moment = 0.9 * moment + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        move = moment / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        x = x * (1 - RATES * WEIGHT_DECAY) - RATES * move
    return steps, best, best_x


def objective(curves, x):
    """Summed Huber loss of the law with every drop by itself, and its gradient."""
    l0, a, alpha, b, c, beta, gamma = x
    value, gradient = 0.0, np.zeros(7)
    for curve in curves:
        rates = curve.learning_rates
        total = np.cumsum(rates)
        drops = rates[:-1] - rates[1:]
        log_rates = np.log(np.maximum(rates[1:], 1e-12))
        speed = c * np.exp(-gamma * log_rates)
        for step, loss in zip(curve.steps, curve.losses):
            gone = total[step] - total[:step]  # S_k(t) for k = 1 .. t
            u = speed[:step] * gone
            log_u = np.log1p(u)
            left = np.exp(-beta * log_u)
            drop = drops[:step]
            gain = drop @ (1 - left)
            slope_u = drop * (beta * left * u / (1 + u))
            trunk = total[step] ** -alpha
            predicted = l0 + a * trunk - b * gain
            r = np.log(predicted) - np.log(loss)
            value += float(_huber(r))
            inner = np.array(
                [
                    1.0,
                    trunk,
                    -a * trunk * np.log(total[step]),
                    -gain,
                    -b * slope_u.sum() / c,
                    -b * (drop @ (left * log_u)),
                    b * (slope_u @ log_rates[:step]),
                ]
            )
            gradient += np.clip(r, -DELTA, DELTA) / predicted * inner
    return value, gradient


def _huber(r):
    size = np.abs(r)
    return np.where(size <= DELTA, 0.5 * r * r, DELTA * (size - 0.5 * DELTA))
