"""A wide network at a large output scale trains like its linearization.

python -m experiments.train --config=experiments/configs/ntk_lazy.py --workdir=runs/ntk_lazy

Under a minute on two cores. The probe `ntk` in metrics.jsonl ends with a relative `drift` of the
kernel of 0.005 and a `gap`, the distance (rms) of test outputs from the linear model's at the same
step, of 0.006 (seed 0), while the training loss falls to 1e-8.
--config.output_scale=0.3 is the rich regime.
"""

import ml_collections

from experiments.studies import ntk_regression


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = ntk_regression.get_default()
    config.output_scale = 10.0
    config.batch_size = config.num_examples
    config.learning_rate = 1.0
    config.num_epochs = 300  # steps: every batch is the whole training set
    config.log_every = 20
    config.probe_every = 60
    config.eval_every_epochs = 0
    config.checkpoint_every = 150
    if mode == "smoke":
        config.num_epochs = 4
        config.width = 32
        config.log_every = 2
        config.probe_every = 2
        config.checkpoint_every = 4
    elif mode:
        raise ValueError(f'ntk_lazy: mode must be "" or "smoke", got {mode!r}.')
    return config
