"""Runs that are branches of one run repeat its points; a point counts as unseen only once."""

import numpy as np


def last_shared_step(curve, others) -> int:
    """The last step up to which `curve` repeats one of `others` value for value; -1 for none.

    Two runs share a step when both logged it with the same loss, from their first common step on.
    """
    last = -1
    for other in others:
        common, own, theirs = np.intersect1d(curve.steps, other.steps, return_indices=True)
        if not len(common):
            continue
        same = np.asarray(curve.losses)[own] == np.asarray(other.losses)[theirs]
        run = int(np.argmin(same)) if not same.all() else len(same)
        # One equal value is chance at four printed digits; a branch repeats many.
        if run >= 3:
            last = max(last, int(common[run - 1]))
    return last


def unshared(curves, others):
    """The curves with the points that `others` already hold removed; empty ones are left out."""
    kept = []
    for curve in curves:
        rest = curve.after(last_shared_step(curve, others))
        if len(rest.steps):
            kept.append(rest)
    return kept
