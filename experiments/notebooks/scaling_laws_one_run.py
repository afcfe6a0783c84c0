# %% [markdown]
# # What one run tells, and what it does not
#
# A loss curve under a constant rate says nothing about what a decay will gain. This notebook makes
# curves of a known law, fits them, and asks three questions: is the gain identifiable, where will a
# run in progress end, and which schedule would have been best.

# %%
import os

import numpy as np

import scaling_laws
from scaling_laws import curves, laws

FAST = bool(os.environ.get("FAST"))
STEPS = 2000 if FAST else 8000
TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.45, "C": 0.8, "lambda": 0.997}


def run(rates, seed, name):
    s1, s2 = scaling_laws.learning_rate_areas(rates, decay=TRUTH["lambda"])
    loss = TRUTH["L0"] + TRUTH["A"] * s1 ** -TRUTH["alpha"] - TRUTH["C"] * s2
    steps = np.union1d(np.arange(100, len(rates), len(rates) // 80), len(rates) - 1)
    noise = np.exp(2e-4 * np.random.default_rng(seed).standard_normal(len(steps)))
    return curves.Curve(steps, loss[steps] * noise, rates, name=name)


# %% [markdown]
# ## A constant rate is refused

# %%
flat = run(curves.constant(STEPS, peak=1e-3), 0, "constant")
try:
    scaling_laws.fit(laws.LRAnnealing(decay=0.997), [flat])
except ValueError as error:
    print(error)
else:
    raise AssertionError("a constant run was fitted")

# %% [markdown]
# ## Two runs with a decay are enough

# %%
earlier = [
    run(curves.cosine(STEPS, peak=1e-3, end=1e-4), 1, "cosine"),
    run(curves.two_stage(STEPS, peak=1e-3, switch=STEPS // 2, end=3e-4), 2, "two stages"),
]
result = scaling_laws.fit(laws.LRAnnealing(decay=0.997), earlier)
for symbol, value in result.params.items():
    low, high = scaling_laws.interval(result, symbol)
    print(f"{symbol:7s} {value:.4g}  [{low:.4g}, {high:.4g}]  truth {TRUTH[symbol]:.4g}")
print("hardest to tell:", result.diagnostics.worst_direction)
assert abs(result.params["C"] / TRUTH["C"] - 1) < 0.05

# %% [markdown]
# ## Where a run in progress will end

# %%
plan = curves.wsd(2 * STEPS, peak=1e-3, decay_start=round(1.8 * STEPS), end=1e-4)
whole = run(plan, 3, "in progress")
now = whole.up_to(round(1.7 * STEPS))
alone = scaling_laws.watch(now, laws.LRAnnealing(decay=0.997))
helped = scaling_laws.watch(now, laws.LRAnnealing(decay=0.997), earlier=earlier)
print(alone.status, "-", alone.reason)
print(f"with two earlier runs: {helped.final_loss:.4f} [{helped.low:.4f}, {helped.high:.4f}],")
print(f"and it ended at {whole.losses[-1]:.4f}")
assert alone.status == "not identifiable yet"
assert helped.final_step == whole.steps[-1]
assert abs(helped.final_loss / whole.losses[-1] - 1) < 2e-3
assert helped.low < whole.losses[-1] < helped.high

# %% [markdown]
# ## The best schedule, and why not to believe it

# %%
best = scaling_laws.optimize_schedule(result, steps=STEPS, peak=1e-3)
kept = scaling_laws.optimize_schedule(result, steps=STEPS, peak=1e-3, floor=1e-4, family="wsd")
print({shape: round(loss, 4) for shape, loss in best.families.items()})
print(f"best of all {best.final_loss:.4f}; WSD with a floor {kept.final_loss:.4f}")
for warning in best.warnings:
    print("warning:", warning)
assert best.final_loss <= min(best.families.values())
assert any("cliff" in warning for warning in best.warnings)
