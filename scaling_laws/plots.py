"""Pictures for a paper; matplotlib is imported when one is drawn."""

import numpy as np

from scaling_laws._compute_optimal import compute_optimal


def _axes(axes, columns=1):
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.2), layout="constrained")
    return figure.subplots(1, columns, squeeze=False)[0]


def fit_and_residuals(result, axes=None):
    """Measured and predicted loss, and the log residuals; two axes.

    Args:
      result: a fit.
      axes: two matplotlib axes, or None for a new figure.
    Returns:
      The axes.
    """
    axes = _axes(axes, 2)
    if hasattr(result.law, "response"):
        for number, curve in enumerate(result.data):
            color = f"C{number}"
            predicted = result.predict(curve)
            axes[0].plot(curve.steps, curve.losses, ".", ms=3, color=color, label=curve.name)
            axes[0].plot(curve.steps, predicted, "-", lw=1, color=color)
            axes[1].plot(
                curve.steps, 100 * np.log(curve.losses / predicted), "-", lw=1, color=color
            )
        axes[0].set(xlabel="step", ylabel="loss (nats/token)", title=f"{result.law.name}: fit")
        axes[1].set(xlabel="step", ylabel="log residual (%)")
        axes[0].legend(fontsize=7)
    else:
        predicted = result.predict(result.data)
        measured = np.asarray(result.data["loss"])
        used = np.zeros(len(measured), bool)
        used[result.prepared.order] = result.prepared.weights > 0
        axes[0].plot(predicted[used], measured[used], ".", ms=4, label=f"fitted, n = {used.sum()}")
        if not used.all():
            rest = f"left out, n = {np.sum(~used)}"
            axes[0].plot(predicted[~used], measured[~used], "x", ms=4, color="C1", label=rest)
        ends = [measured.min(), measured.max()]
        axes[0].plot(ends, ends, "k-", lw=0.8)
        axes[0].set(
            xlabel="predicted loss", ylabel="measured loss", title=f"{result.law.name}: fit"
        )
        axes[0].legend(fontsize=8)
        axes[1].plot(predicted[used], 100 * np.log(measured / predicted)[used], ".", ms=4)
        axes[1].set(xlabel="predicted loss", ylabel="log residual (%)")
    axes[1].axhline(0, color="k", lw=0.6)
    return axes


def parameter_pair(result, samples, first, second, axes=None):
    """Bootstrap samples of two parameters, with the estimate."""
    axis = _axes(axes)[0] if axes is None else axes
    axis.plot(samples.samples[first], samples.samples[second], ".", ms=2, alpha=0.3)
    axis.plot(result.params[first], result.params[second], "k+", ms=10, label="estimate")
    number = len(samples.samples[first])
    axis.set(xlabel=first, ylabel=second, title=f"{number} bootstrap samples")
    axis.legend()
    return axis


def isoflop(result, budgets, axes=None, *, data=None):
    """Loss against model size at fixed compute, with the optimum of each budget marked."""
    axis = _axes(axes)[0] if axes is None else axes
    best = compute_optimal(result, budgets)
    for i, budget in enumerate(best.flops):
        size = best.params[i] * np.geomspace(0.1, 10, 101)
        loss = result.predict({"params": size, "tokens": budget / (6 * size)})
        axis.semilogx(size, loss, color=f"C{i}", lw=1.2, label=f"{budget:.0e} FLOP")
        axis.plot(best.params[i], best.loss[i], "o", ms=4, color=f"C{i}")
        if data is not None:
            rows = np.abs(np.log(np.asarray(data["flops"]) / budget)) < 0.1
            axis.plot(
                np.asarray(data["params"])[rows], np.asarray(data["loss"])[rows], ".", color=f"C{i}"
            )
    axis.set(xlabel="parameters N", ylabel="loss (nats/token)")
    axis.legend(fontsize=7)
    return axis


def frontier(result, flops, axes=None, *, bootstrap=None, level=0.8):
    """Compute-optimal model size against compute, with the bootstrap's band."""
    axis = _axes(axes)[0] if axes is None else axes
    best = compute_optimal(result, flops, bootstrap=bootstrap, level=level)
    axis.loglog(best.flops, best.params, label=f"N_opt ~ C^{best.exponent:.3f}")
    if bootstrap is not None:
        axis.fill_between(
            best.flops,
            *best.intervals["params"],
            alpha=0.25,
            label=f"{level:.0%} of {len(bootstrap.objectives)} bootstraps",
        )
    axis.set(xlabel="training compute C (FLOP)", ylabel="parameters N")
    axis.legend()
    return axis


def schedules(named, axes=None):
    """Learning rates against steps; `named` maps a label to the rate of every step."""
    axis = _axes(axes)[0] if axes is None else axes
    for name, rates in named.items():
        axis.plot(np.arange(len(rates)), rates, lw=1.4, label=name)
    axis.set(xlabel="step", ylabel="learning rate")
    axis.legend(fontsize=7)
    return axis
