# %% [markdown]
# # One network, its kernel, and the line that training follows
#
# A finite network near its start is a linear model in its weights. Its tangent kernel says how that
# model trains, in closed form. This notebook computes the kernel of a network, predicts gradient
# descent, trains the network itself, and sees how far the two are apart at two widths.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np

import ntk

FAST = bool(os.environ.get("FAST"))
WIDTHS = (64, 1024) if FAST else (64, 4096)
STEPS = 60 if FAST else 200
rng = np.random.default_rng(0)
x, y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((12, 4), (12, 1)))
x_test = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)


def network(params, x):
    w, v = params
    return jnp.tanh(x @ w / 2.0) @ v / v.shape[0] ** 0.5


def start(width):
    keys = jax.random.split(jax.random.key(width))
    return jax.random.normal(keys[0], (4, width)), jax.random.normal(keys[1], (width, 1))


# %% [markdown]
# The kernel of all 12 inputs. No method is named: the default reads off the trace that examples do
# not mix, and that each weight is used once.


# %%
def compare(width):
    params = start(width)
    kernel_fn = ntk.empirical_ntk_fn(network)
    kernel, cross = kernel_fn(x, None, params), kernel_fn(x_test, x, params)
    rate = 0.5 * float(ntk.predict.max_learning_rate(kernel, y_train_size=y.size))
    predict_fn = ntk.predict.gradient_descent_mse(kernel, y, learning_rate=0.1 * rate)
    line = predict_fn(float(STEPS), network(params, x), network(params, x_test), cross)[1]

    @jax.jit
    def train(params):
        def step(p, _):
            slope = jax.grad(lambda q: 0.5 * jnp.mean((network(q, x) - y) ** 2))(p)
            return jax.tree.map(lambda a, g: a - 0.1 * rate * g, p, slope), None

        return jax.lax.scan(step, params, None, length=STEPS)[0]

    trained = train(params)
    gap = float(jnp.sqrt(jnp.mean((network(trained, x_test) - line) ** 2)))
    drift = float(ntk.dynamics.kernel_drift(kernel_fn(x, None, trained), kernel))
    return gap, drift


results = {width: compare(width) for width in WIDTHS}
for width, (gap, drift) in results.items():
    print(f"width {width}: off the line by {gap:.4f} (rms), kernel moved by {drift:.4f}")

# %% [markdown]
# Both shrink with the width, about as its inverse square root.

# %%
narrow, wide = results[WIDTHS[0]], results[WIDTHS[1]]
assert wide[0] < 0.6 * narrow[0]
assert wide[1] < 0.6 * narrow[1]
