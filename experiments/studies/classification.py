"""Image classification by SGD, SAF, MESA, the SAM family and controls, all else being equal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import sam_free
from sam_free import sharpness
from shared import data, models
from shared.devices import AXIS
from shared.train import Study, compute_in, default_config, steps_per_epoch

METHODS = ("sgd", "saf", "mesa", "sam", "gsam", "looksam", "esam", "uniform", "averaged")

PROBE_SIZE = 512  # training examples that the sharpness probe measures on


def get_default() -> ml_collections.ConfigDict:
    """The loop's keys and those of this study."""
    config = default_config()
    config.study = "classification"
    config.dataset = "digits"  # or "fashion_mnist", or a folder of MNIST's four IDX files
    config.train_size = 0  # seeded subset of the training set; 0: all
    config.label_noise = 0.0  # share of training labels replaced by uniform draws
    config.augment_crop = 0  # pixels of padding for random crops; 0: none

    config.model = "mlp"  # or "convnet", "resnet"
    config.width = 256  # units, or channels
    config.depth = 2  # hidden layers, convolutions, or blocks per stage
    config.dropout = 0.0
    config.parameterization = "standard"  # or "ntk", "mup"

    config.momentum = 0.9
    config.weight_decay = 5e-4  # of weight matrices and kernels, coupled as in SGD
    config.warmup_epochs = 1.0  # of the linear warm-up; a cosine to 0 follows
    config.label_smoothing = 0.0

    config.method = "sgd"  # or another of METHODS
    config.start_epoch = 5  # the extra term of SAF and MESA is on in later epochs, from 0
    config.temperature = 5.0  # tau
    config.tau_squared = True  # False: the literal paper form, 25 times weaker
    config.saf_weight = 0.3  # lambda
    config.saf_lag_epochs = 3  # age of SAF's target
    config.saf_buffer_dtype = "float16"
    config.saf_ring = "lag_plus_one"
    config.saf_stale = "mask"  # or "official", rows never written are a uniform target
    config.saf_published_ranks = 1  # above 1: tables that do not know each other, as published
    config.uniform_weight = 0.3  # of the control without memory
    config.mesa_weight = 0.8
    config.mesa_decay = 0.995  # of the averaged weights, "averaged" too
    config.sam_rho = 0.05
    config.sam_adaptive = False
    config.sam_group_size = 0  # m of m-SAM; 0: the whole batch
    config.gsam_alpha = 0.1
    config.looksam_period = 5
    config.looksam_alpha = 0.7
    config.esam_beta = 0.6
    config.esam_gamma = 0.5
    return config


def build(config: Any) -> Study:
    """Data, network, objective and optimizer of a run.

    Raises:
      ValueError: a key has a value that is not listed in `get_default`.
    """
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {config.method!r}.")
    train, test, num_classes = load(config)
    steps = steps_per_epoch(
        train.num_examples,
        config.batch_size,
        order=config.order,
        num_shards=config.order_shards,
    )
    num_steps = config.num_steps or config.num_epochs * steps
    model = compute_in(make_model(config, num_classes), config.compute_dtype)
    return Study(
        model=model,
        train_data=train,
        objective=make_objective(config, model.apply, num_classes, num_steps),
        optimizer=make_optimizer(config, steps, num_steps),
        gradient=make_gradient(config),
        eval_data={"test": test},
        probes=make_probes(config, model, train),
    )


def load(config: Any) -> tuple[Any, Any, int]:
    """(training set, test set, number of classes)."""
    if config.dataset == "digits":
        train, test = data.digits()
    elif config.dataset == "fashion_mnist":
        train, test = data.fashion_mnist()
    else:
        train, test = data.idx_folder(config.dataset)
    num_classes = int(train.arrays["label"].max()) + 1
    if config.train_size:
        train = data.subset(train, config.train_size, seed=config.seed)
    if config.label_noise:
        train = data.with_label_noise(
            train, config.label_noise, num_classes=num_classes, seed=config.seed
        )
    if config.augment_crop:
        train = data.Augmented(train, [data.random_crop(config.augment_crop)])
    return train, test, num_classes


def make_model(config: Any, num_classes: int) -> models.Model:
    """The network that `config.model` names."""
    shape = {
        "num_outputs": num_classes,
        "width": config.width,
        "depth": config.depth,
        "parameterization": config.parameterization,
    }
    if config.model == "mlp":
        return models.mlp(**shape, dropout=config.dropout)
    if config.model == "convnet":
        return models.convnet(**shape, dropout=config.dropout)
    if config.model == "resnet":
        return models.resnet(**shape, axis_name=AXIS)
    raise ValueError(f'model must be "mlp", "convnet" or "resnet", got {config.model!r}.')


def make_objective(config: Any, apply_fn: Any, num_classes: int, num_steps: int) -> Any:
    """Cross-entropy, with the trajectory loss of SAF or MESA where the method asks for it."""
    base_loss = sam_free.label_smoothing(config.label_smoothing)
    term = {
        "start_epoch": config.start_epoch,
        "temperature": config.temperature,
        "tau_squared": config.tau_squared,
    }
    if config.method == "saf":
        return sam_free.saf(
            apply_fn,
            base_loss,
            num_classes=num_classes,
            lag_epochs=config.saf_lag_epochs,
            weight=config.saf_weight,
            buffer_dtype=config.saf_buffer_dtype,
            ring=config.saf_ring,
            stale=config.saf_stale,
            published_ranks=config.saf_published_ranks,
            order=config.order,
            axis_name=AXIS,
            **term,
        )
    if config.method == "uniform":
        return sam_free.uniform_target(apply_fn, base_loss, weight=config.uniform_weight, **term)
    if config.method == "averaged":
        return sam_free.averaged_weights(
            apply_fn, base_loss, decay=config.mesa_decay, num_steps=num_steps
        )
    if config.method == "mesa":
        return sam_free.mesa(
            apply_fn,
            base_loss,
            decay=config.mesa_decay,
            weight=config.mesa_weight,
            num_steps=num_steps,
            **term,
        )
    return sam_free.plain(apply_fn, base_loss)


def make_gradient(config: Any) -> Any:
    """A rule of the SAM family, or None for the plain gradient."""
    ball = {"rho": config.sam_rho, "axis_name": AXIS}
    shape = {"adaptive": config.sam_adaptive}
    groups = {"group_size": config.sam_group_size or None}
    if config.method == "sam":
        return functools.partial(sam_free.sam_gradient, **ball, **shape, **groups)
    if config.method == "gsam":
        return functools.partial(
            sam_free.gsam_gradient, alpha=config.gsam_alpha, **ball, **shape, **groups
        )
    if config.method == "looksam":
        return functools.partial(
            sam_free.looksam_gradient,
            period=config.looksam_period,
            alpha=config.looksam_alpha,
            **ball,
            **shape,
        )
    if config.method == "esam":
        return functools.partial(
            sam_free.esam_gradient,
            beta=config.esam_beta,
            gamma=config.esam_gamma,
            key=jax.random.key(config.seed),
            **ball,
            **groups,
        )
    return None


def make_probes(config: Any, model: models.Model, train: Any) -> dict[str, Any]:
    """Sharpness of the cross-entropy on the first training examples, where probes are on."""
    if not config.probe_every:
        return {}
    batch = train.batch(np.arange(min(PROBE_SIZE, train.num_examples)))

    def make_loss(state: Any) -> Any:
        def loss_fn(params: Any, batch: Any) -> jax.Array:
            logits, _ = model.apply(
                params, state.model_state, batch["image"], train=False, key=None
            )
            return jnp.mean(sam_free.cross_entropy(logits, batch))

        return loss_fn

    return {"sharpness": sharpness.probe(make_loss, [batch], key=jax.random.key(config.seed))}


def make_optimizer(config: Any, steps: int, num_steps: int) -> optax.GradientTransformation:
    """SGD with momentum, weight decay on weights of two axes and more, warm-up and cosine."""
    warmup_steps = round(config.warmup_epochs * steps)
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"warmup_epochs = {config.warmup_epochs} is {warmup_steps} steps, and the run has "
            f"{num_steps}; use less."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup_steps, num_steps
    )
    return optax.chain(
        optax.add_decayed_weights(
            config.weight_decay,
            mask=lambda params: jax.tree.map(lambda w: jnp.ndim(w) >= 2, params),
        ),
        optax.sgd(schedule, momentum=config.momentum),
    )
