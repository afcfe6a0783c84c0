# %% [markdown]
# # Weight decay as a constraint
#
# Lion-K with weight decay minimises f(x) + K*(decay x) / decay. For a norm K the second term is a
# ball: the weight decay is not a penalty but its inverse radius. This notebook checks it on one
# problem for several kappas, watches the Lyapunov function, and asks how far the end is from a
# constrained optimum.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np

from lion_lyapunov import analysis, flow, kappas, lion_k

FAST = bool(os.environ.get("FAST"))
STEPS = 1500 if FAST else 6000
DECAY = 1.0
HESSIAN = np.diag([1.0, 0.5, 0.2])
GOAL = np.array([2.0, 0.4, -1.5])


def loss(x):
    gap = x - jnp.asarray(GOAL)
    return 0.5 * gap @ jnp.asarray(HESSIAN) @ gap


# %% [markdown]
# ## One loop, four constraints


# %%
def run(kappa):
    optimizer = lion_k(lambda t: jnp.minimum(0.02, 10 / (t + 1.0)), kappa, weight_decay=DECAY)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        return (x + updates, state), None

    x = jnp.zeros(3)
    return jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=STEPS)[0][0])(x)


with jax.enable_x64(True):
    ends = {}
    for kappa in (kappas.l1(), kappas.l2(), kappas.linf(), kappas.positive_part()):
        x = run(kappa)
        ends[kappa.name] = (
            np.asarray(x),
            float(loss(x)),
            float(analysis.violation(kappa, x, DECAY)),
        )
for name, (x, value, violation) in ends.items():
    print(f"{name:14s} x = {np.round(x, 3)}  f = {value:.4f}  violation = {violation:.1e}")

# %% [markdown]
# The box clips each coordinate; the l1 ball (of `linf`) keeps few coordinates; the one-sided box
# refuses negative ones.

# %%
np.testing.assert_allclose(ends["l1"][0], np.clip(GOAL, -1, 1), atol=0.02)
np.testing.assert_allclose(ends["positive_part"][0], np.clip(GOAL, 0, 1), atol=0.02)
assert all(violation <= 1e-8 for _, _, violation in ends.values())

# %% [markdown]
# ## The Lyapunov function of the flow
#
# f alone may rise on the way; H may not.

# %%
with jax.enable_x64(True):
    path = flow.solve(
        kappas.log_cosh(3.0), loss, jnp.zeros(3), duration=15.0, weight_decay=DECAY, eps=0.2
    )
rise = float(np.max(np.diff(path.lyapunov)))
print(path.message)
print(f"largest rise of H: {rise:.1e}")
assert rise <= 1e-8

# %% [markdown]
# ## Settings that the theorems do not cover

# %%
findings = analysis.check_settings(
    learning_rate=1e-3, b1=0.99, b2=0.9, weight_decay=1.0, dtype=jnp.bfloat16
)
for finding in findings:
    print(finding.code, "-", finding.message)
assert {finding.code for finding in findings} == {"b1_above_b2", "decay_lost_to_rounding"}
