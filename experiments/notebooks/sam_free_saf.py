# %% [markdown]
# # SAF in twenty lines, and the control that it needs
#
# SAF adds to the loss of each example the distance of its outputs from its own outputs some epochs
# ago. This notebook trains a small network on the digits with a fifth of the labels replaced: with
# SGD, with SAF, and with a constant uniform target in place of the past. It then measures the
# largest Hessian eigenvalue and SAM's sharpness, each with its error bar.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sam_free
from sam_free import sharpness
from shared import data, models

FAST = bool(os.environ.get("FAST"))
EPOCHS, BATCH, SEED = (12 if FAST else 30), 64, 0

train, test = data.digits()
train = data.with_label_noise(train, 0.18, num_classes=10, seed=SEED)
IMAGES, LABELS = (jnp.asarray(train.arrays[name]) for name in ("image", "label"))
model = models.mlp(num_outputs=10, width=64, depth=2)

# %% [markdown]
# ## The loop
#
# An objective has `init`, `loss` and `update`; its state, SAF's table of past outputs, goes through
# the step like the parameters and belongs into the checkpoint like them.


# %%
def fit(objective):
    params, model_state = model.init(jax.random.key(SEED), IMAGES[:1])
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(carry, index, epoch):
        params, opt_state, table = carry
        batch = {"image": IMAGES[index], "label": LABELS[index], "index": index}

        def loss_fn(params):
            return objective.loss(params, model_state, table, batch, epoch, None)

        (loss, outputs), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        table = objective.update(
            table,
            params=params,
            model_state=outputs.model_state,
            logits=outputs.logits,
            batch=batch,
            epoch=epoch,
        )
        return (params, opt_state, table), loss

    @jax.jit
    def run_epoch(carry, order, epoch):
        return jax.lax.scan(lambda c, index: step(c, index, epoch), carry, order)[0]

    rng = np.random.default_rng(SEED)
    carry = (params, optimizer.init(params), objective.init(params, train.num_examples))
    for epoch in range(EPOCHS):
        order = rng.permutation(train.num_examples)[: train.num_examples // BATCH * BATCH]
        carry = run_epoch(carry, jnp.asarray(order.reshape(-1, BATCH), jnp.int32), epoch)
    return carry[0]


term = {"start_epoch": 3, "weight": 3.0}
runs = {
    "SGD": fit(sam_free.plain(model.apply, sam_free.cross_entropy)),
    "SAF 3": fit(sam_free.saf(model.apply, sam_free.cross_entropy, num_classes=10, **term)),
    "uniform target 3": fit(sam_free.uniform_target(model.apply, sam_free.cross_entropy, **term)),
}

# %% [markdown]
# ## What it did
#
# Sharpness is that of the plain cross-entropy on the training examples with the labels they were
# given. The eigenvalue's error is the norm of its residual; that of the SAM sharpness, of groups of
# 128 examples, is a standard error over groups.


# %%
def evaluate(params, batch):
    logits, _ = model.apply(params, (), batch["image"], train=False, key=None)
    return logits


def loss_fn(params, batch):
    return jnp.mean(sam_free.cross_entropy(evaluate(params, batch), batch))


part = [{"image": IMAGES[i : i + 128], "label": LABELS[i : i + 128]} for i in range(0, 1024, 128)]
clean = {name: jnp.asarray(test.arrays[name]) for name in ("image", "label")}
top, grown = {}, {}
for name, params in runs.items():
    accuracy = jnp.mean(jnp.argmax(evaluate(params, clean), axis=1) == clean["label"])
    top[name] = sharpness.top_eigenvalues(loss_fn, params, part, key=jax.random.key(0))
    grown[name] = sharpness.sam_sharpness(loss_fn, params, part, rho=0.05, group_size=128)
    print(
        f"{name:17s} accuracy {100 * accuracy:5.1f} %   largest eigenvalue "
        f"{top[name].value[0]:6.2f} +- {top[name].error[0]:.1g}   SAM sharpness "
        f"{grown[name].value:.4f} +- {grown[name].error:.4f}"
    )

# %% [markdown]
# ## The claims
#
# The pull of SAF lowers the largest eigenvalue by more than the error bars. So does the uniform
# target, which remembers nothing: an eigenvalue alone does not tell the two apart. SAM's sharpness
# does.

# %%
for name in ("SAF 3", "uniform target 3"):
    assert top[name].value[0] + top[name].error[0] < 0.9 * top["SGD"].value[0]
assert grown["SAF 3"].value + grown["SAF 3"].error < grown["uniform target 3"].value
