"""Every key that the training loop reads, in one place."""

from typing import Any

import ml_collections

Config = Any  # an ml_collections.ConfigDict, whose values a type checker cannot know


def default_config() -> ml_collections.ConfigDict:
    """The loop's keys with their defaults, unlocked, for a config file to start from."""
    config = ml_collections.ConfigDict()
    config.study = ""  # module of experiments/studies whose build(config) makes the run
    config.seed = 0  # of parameters, order of the data, dropout and augmentation

    config.num_epochs = 1  # passes over the training set
    config.num_steps = 0  # updates; 0: as many as num_epochs make
    config.batch_size = 128  # examples per update, summed over devices and accumulation
    config.eval_batch_size = 0  # examples per evaluation step; 0: batch_size
    config.grad_accumulation = 1  # parts that a batch is split into, one after the other
    config.learning_rate = 0.1  # peak, of the study's schedule
    config.clip_norm = 0.0  # global norm that the mean gradient is clipped to; 0: no clipping
    config.compute_dtype = "float32"  # or "bfloat16": activations; parameters stay float32

    config.parallelism = "shard_map"  # or "pmap"
    config.num_devices = 0  # of all processes together; 0: all that there are
    config.order = "global"  # or "owner_local": an example is always seen by the same device
    config.order_shards = 8  # owners in the local order; a multiple of the number of devices

    config.log_every = 50  # steps per line of metrics.jsonl; a line holds means over them
    config.eval_every_epochs = 1  # passes between evaluations; 0: only at the end
    config.probe_every = 0  # steps between probes, the first before training; 0: no probes
    config.log_grad_norm = False  # record the gradient's norm; clipping always does
    config.checkpoint_every = 0  # steps between checkpoints; 0: one per epoch
    config.keep_checkpoints = 2  # newest that are kept, at least 2
    config.start_from = ""  # folder of another run whose newest checkpoint this one begins at
    config.missing_objective = "refuse"  # a checkpoint without the objective's state; or "mask"
    config.tensorboard = False  # event files in <workdir>/tensorboard beside the record
    config.wandb_project = ""  # project of Weights & Biases that the run is sent to; "": none
    config.prefetch = 0  # batches that a thread reads ahead; 0: read while the device works
    config.profile_start = 0  # first step of the trace written to <workdir>/profile
    config.profile_steps = 0  # length of the trace; 0: none
    return config
