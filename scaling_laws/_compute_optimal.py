"""Model size and tokens for a compute budget: closed form, and Hoffmann's three methods."""

import dataclasses

import numpy as np

from scaling_laws._bootstrap import Bootstrap, percentiles
from scaling_laws._result import FitResult


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The best use of each compute budget, C = 6 N D.

    flops, params, tokens, loss, tokens_per_param: [budgets]. exponent: a of N_opt ~ C^a.
    intervals: name -> (low, high), where a bootstrap was given.
    """

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    tokens_per_param: np.ndarray
    exponent: float
    intervals: dict


def compute_optimal(
    result: FitResult,
    flops,
    *,
    bootstrap: Bootstrap | None = None,
    level=0.95,
    inference_tokens=0.0,
) -> Allocation:
    """Model size and tokens that minimise the Chinchilla loss at given training compute.

    N_opt = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)), and
    D_opt = (C / 6) / N_opt (Hoffmann et al. 2022, arXiv:2203.15556, Eq. 4).

    Args:
      result: a fit of `laws.Chinchilla`.
      flops: budgets, positive; a number or [budgets].
      bootstrap: of the same fit, for intervals.
      level: of the intervals.
      inference_tokens: tokens that the model will read after training, at 2 N FLOP each; then
        `flops` pays for both and the optimum is found numerically (a smaller model).
    Raises:
      ValueError: the law has no N and D, a budget is not positive, or an exponent is 0.
    """
    if tuple(result.law.inputs) != ("params", "tokens"):
        raise ValueError(f"compute_optimal: needs a fit of laws.Chinchilla, got {result.law.name}.")
    flops = np.atleast_1d(np.asarray(flops, dtype=float))
    if not np.all(np.isfinite(flops) & (flops > 0)):
        raise ValueError(f"compute_optimal: flops must be positive, got {flops.tolist()}.")
    if inference_tokens < 0:
        raise ValueError(f"compute_optimal: inference_tokens must be >= 0, got {inference_tokens}.")
    if min(result.params["alpha"], result.params.get("beta", 1.0)) <= 0:
        raise ValueError("compute_optimal: an exponent is 0, so there is no optimum.")
    best = optimum(result.params, flops, inference_tokens)
    if np.min(best["params"]) < 1:
        raise ValueError(
            f"compute_optimal: {np.min(flops):.3g} flops leave less than one parameter"
            + (f" for {inference_tokens:.3g} inference_tokens." if inference_tokens else ".")
        )
    intervals = {}
    if bootstrap is not None:
        samples = {s: v[:, None] for s, v in bootstrap.samples.items()}
        drawn = optimum(samples, flops[None, :], inference_tokens)
        for name, values in drawn.items():
            if values.ndim == 1 or (values.shape[1] == 1 and name == "exponent"):
                intervals[name] = percentiles(values.ravel(), level)
            else:
                ends = [percentiles(column, level) for column in values.T]
                intervals[name] = tuple(np.array(end) for end in zip(*ends))
    best["exponent"] = float(best["exponent"])
    return Allocation(flops=flops, intervals=intervals, **best)


def optimum(params, flops, inference_tokens=0.0):
    """`Allocation`'s arrays for parameters by symbol; broadcasts over samples."""
    alpha, beta = params["alpha"], params.get("beta", params["alpha"])
    scale = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
    size = scale * (flops / 6) ** (beta / (alpha + beta))
    if inference_tokens:
        size = _with_inference(params, alpha, beta, flops, inference_tokens, size)
    tokens = (flops / size - 2 * inference_tokens) / 6
    loss = params["E"] + params["A"] * size**-alpha + params["B"] * tokens**-beta
    return {
        "params": size,
        "tokens": tokens,
        "loss": loss,
        "tokens_per_param": tokens / size,
        "exponent": np.asarray(beta / (alpha + beta)),
    }


def _with_inference(params, alpha, beta, flops, inference_tokens, largest):
    """Golden section in log N: the loss along the budget has one minimum."""
    ceiling = flops / (2 * inference_tokens) * (1 - 1e-9)
    high = np.log(np.minimum(largest, ceiling)) + np.zeros_like(largest)
    low = high - 12.0

    def loss(log_size):
        size = np.exp(log_size)
        tokens = np.maximum((flops / size - 2 * inference_tokens) / 6, 1e-30)
        return params["A"] * size**-alpha + params["B"] * tokens**-beta

    golden = (np.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        lower = loss(left) < loss(right)
        high, low = np.where(lower, right, high), np.where(lower, low, left)
    return np.exp((low + high) / 2)


def hoffmann_methods(data, *, budgets=None, result: FitResult | None = None, envelope_points=200):
    """Hoffmann's three estimates of N_opt ~ C^a, side by side.

    Args:
      data: dict with `params`, `flops` and `loss`: for method 1 the points of training curves, for
        method 2 runs at shared budgets. D = flops / (6 params).
      budgets: the compute budgets of method 2; default, the values of `flops` (to 2 %) that hold
        at least five runs.
      result: a fit of `laws.Chinchilla` for method 3; None fits one.
      envelope_points: log-spaced budgets of method 1 (the paper takes 1,500).
    Returns:
      dict with "envelope" (1), "isoflop" (2) and "parametric" (3): each `exponent`, `flops` and
      `params`, or `reason` where the data do not serve the method. Method 2 is biased where alpha
      differs from beta or the grid is off centre (Czech et al. 2026, arXiv:2603.22339).
    """
    from scaling_laws import laws
    from scaling_laws._fit import fit

    size, flops, loss = (np.asarray(data[k], dtype=float) for k in ("params", "flops", "loss"))
    result = fit(laws.Chinchilla(), data) if result is None else result
    span = np.geomspace(flops.min(), flops.max(), 20)
    best = compute_optimal(result, span)
    return {
        "envelope": _envelope(size, flops, loss, envelope_points),
        "isoflop": _isoflop(size, flops, loss, budgets),
        "parametric": {"exponent": best.exponent, "flops": best.flops, "params": best.params},
    }


def _line(flops, size, **more):
    slope, _ = np.polyfit(np.log(flops), np.log(size), 1)
    return {
        "exponent": float(slope),
        "flops": np.asarray(flops),
        "params": np.asarray(size),
        **more,
    }


def _envelope(size, flops, loss, points):
    """Method 1: at each budget the size whose interpolated curve is lowest."""
    runs = [np.flatnonzero(size == value) for value in np.unique(size)]
    runs = [rows[np.argsort(flops[rows])] for rows in runs if len(rows) >= 3]
    if len(runs) < 3:
        return {"reason": "fewer than three sizes have curves of three points or more"}
    low = min(flops[rows[0]] for rows in runs)
    high = max(flops[rows[-1]] for rows in runs)
    grid = np.geomspace(low, high, points)
    table = np.full((len(runs), points), np.inf)
    for row, rows in zip(table, runs):
        inside = (grid >= flops[rows[0]]) & (grid <= flops[rows[-1]])
        row[inside] = np.interp(np.log(grid[inside]), np.log(flops[rows]), loss[rows])
    winner = np.argmin(table, axis=0)
    finite = np.isfinite(table[winner, np.arange(points)])
    # At the ends the smallest and the largest size win for want of a rival.
    inner = finite & (winner > 0) & (winner < len(runs) - 1)
    if len(np.unique(winner[inner])) < 2:
        return {"reason": "the curves do not overlap enough for an envelope"}
    sizes = np.array([size[rows[0]] for rows in runs])
    return _line(grid[inner], sizes[winner[inner]])


def _isoflop(size, flops, loss, budgets):
    """Method 2: a parabola in log N at each budget, and a line through the minima."""
    if budgets is None:
        rounded = np.round(np.log(flops) / 0.02)
        values, counts = np.unique(rounded, return_counts=True)
        budgets = [np.exp(np.mean(np.log(flops[rounded == v]))) for v in values[counts >= 5]]
    at, minima, skipped = [], [], []
    for budget in budgets:
        rows = np.abs(np.log(flops / budget)) < 0.02
        if rows.sum() < 4:
            skipped.append(float(budget))
            continue
        curve = np.polyfit(np.log(size[rows]), loss[rows], 2)
        vertex = -curve[1] / (2 * curve[0])
        inside = np.log(size[rows]).min() <= vertex <= np.log(size[rows]).max()
        if curve[0] <= 0 or not inside:
            skipped.append(float(budget))
            continue
        at.append(budget)
        minima.append(np.exp(vertex))
    if len(at) < 2:
        return {"reason": "fewer than two budgets have a minimum inside their sizes"}
    return _line(at, minima, skipped=skipped)
