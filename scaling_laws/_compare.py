"""Which law predicts runs that it has not seen, and which one the fitted runs prefer."""

import numpy as np

from scaling_laws._fit import fit
from scaling_laws._shared_steps import unshared


def errors(predicted, measured) -> dict[str, float]:
    """The field's error measures of one curve: R2, MAE, RMSE, PredE (mean |e| / L), WorstE."""
    predicted, measured = np.asarray(predicted), np.asarray(measured)
    error = predicted - measured
    spread = float(np.sum((measured - measured.mean()) ** 2))
    relative = np.abs(error) / measured
    return {
        "R2": 1 - float(np.sum(error**2)) / spread if spread > 0 else float("nan"),
        "MAE": float(np.mean(np.abs(error))),
        "RMSE": float(np.sqrt(np.mean(error**2))),
        "PredE": float(np.mean(relative)),
        "WorstE": float(np.max(relative)),
    }


def compare(laws, data, held_out=None, *, folds=5, key=None, **options) -> list[dict]:
    """Fits every law to the same data and scores it on the same unseen data.

    Args:
      laws: instances.
      data: what `fit` takes, for every one of the laws.
      held_out: curves (or a table) for the score. Steps that they share with the fitted curves,
        value for value, are removed first: they are no test. None leaves out one curve in turn, or
        one of `folds` parts of a table.
      folds: parts of a table.
      key: for `fit`.
      options: for `fit`.
    Returns:
      One dict per law, the best mean PredE first: `law`, `params`, `objective`, `held_out` (mean of
      every measure over runs), `by_run`, `num_parameters`, and `AIC` and `BIC` of the fitted data
      with the effective sample size of the most autocorrelated fit, the same for all laws.
    """
    rows, results = [], []
    for law in laws:
        result = fit(law, data, key=key, **options)
        table = not hasattr(law, "response")
        if held_out is None:
            scores = _in_turn(law, data, folds, key, options, table)
        elif table:
            scores = {"held out": errors(result.predict(held_out), held_out["loss"])}
        else:
            kept = unshared(held_out, data)
            scores = {c.name: errors(result.predict(c), c.losses) for c in kept}
        if not scores:
            raise ValueError("compare: every held-out step is shared with the fitted curves.")
        mean = {
            m: float(np.mean([s[m] for s in scores.values()])) for m in next(iter(scores.values()))
        }
        results.append(result)
        rows.append(
            {
                "law": law.name,
                "num_parameters": int(np.sum(result.free)),
                "params": result.params,
                "objective": result.objective,
                "held_out": mean,
                "by_run": scores,
            }
        )
    effective = min(result.diagnostics.effective_points for result in results)
    for row, result in zip(rows, results):
        used = result.prepared.weights > 0
        fit_term = effective * np.log(np.mean(result.residuals()[used] ** 2))
        row["AIC"] = float(fit_term + 2 * (row["num_parameters"] + 1))
        row["BIC"] = float(fit_term + np.log(effective) * (row["num_parameters"] + 1))
        row["effective_points"] = float(effective)
    return sorted(rows, key=lambda row: row["held_out"]["PredE"])


def _in_turn(law, data, folds, key, options, table):
    if table:
        return _table_folds(law, data, folds, key, options)
    scores = {}
    for i, curve in enumerate(data):
        others = [other for j, other in enumerate(data) if j != i]
        for rest in unshared([curve], others):
            scores[curve.name] = errors(
                fit(law, others, key=key, **options).predict(rest), rest.losses
            )
    return scores


def _table_folds(law, data, folds, key, options):
    losses = np.asarray(data["loss"], dtype=float)
    part = np.empty(len(losses), int)
    # Neighbours in loss go to different parts, so that every part spans the range.
    part[np.argsort(losses, kind="stable")] = np.arange(len(losses)) % folds
    scores = {}
    for fold in range(folds):
        left = {k: np.asarray(v)[part != fold] for k, v in data.items()}
        right = {k: np.asarray(v)[part == fold] for k, v in data.items()}
        scores[f"part {fold}"] = errors(
            fit(law, left, key=key, **options).predict(right), right["loss"]
        )
    return scores
