# %% [markdown]
# # Infinitely wide networks in five minutes
# A kernel from layers, its exactness where two inputs meet, learning its scales by gradients, and
# the spectrum of a deep network on the sphere.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import ntk
from ntk import stax

# %% [markdown]
# ## A kernel
# The same triple that neural-tangents gives: parameters, finite network, infinite-width kernel.

# %%
init_fn, apply_fn, kernel_fn = stax.serial(
    stax.Dense(512, W_std=1.4, b_std=0.1), stax.Relu(), stax.Dense(1)
)
x = np.random.default_rng(0).normal(size=(6, 4))
with jax.enable_x64(True):
    both = kernel_fn(x, None, ("nngp", "ntk"))
print(np.round(both.ntk, 3))

# %% [markdown]
# ## Equal inputs, given twice
# The tangent kernel of two copies is that of one input to the last digits.

# %%
with jax.enable_x64(True):
    copies = np.asarray(kernel_fn(x, x.copy(), "ntk"))
    gap = np.max(np.abs(np.diag(copies) / np.diag(np.asarray(both.ntk)) - 1))
print(f"largest relative gap: {gap:.1e}")
assert gap < 1e-14

# %% [markdown]
# ## Scales have gradients
# The slope of the kernel in the weight scale, against a difference.

# %%
with jax.enable_x64(True):

    def total(weight):
        layers = stax.Dense(1, weight, 0.1), stax.Relu(), stax.Dense(1)
        return jnp.sum(stax.serial(*layers).kernel_fn(x, None, "nngp"))

    slope = float(jax.grad(total)(1.4))
    numeric = float((total(1.4 + 1e-5) - total(1.4 - 1e-5)) / 2e-5)
print(slope, numeric)
assert abs(slope / numeric - 1) < 1e-8

# %% [markdown]
# ## On the sphere
# Eigenvalues by degree of the harmonics; odd degrees above one vanish for one ReLU layer without
# biases.

# %%
with jax.enable_x64(True):
    plain = stax.serial(stax.Dense(1), stax.Relu()).kernel_fn
    values = np.asarray(ntk.sphere_spectrum(ntk.cosine_form(plain, 3, get="nngp"), 3, 6))
print(values)
assert np.all(np.abs(values[[3, 5]]) < 1e-12)
assert np.all(values[[0, 1, 2, 4]] > 0)
