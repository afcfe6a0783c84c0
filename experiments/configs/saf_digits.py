"""SAF on scikit-learn's digits with a fifth of the training labels replaced, a small MLP.

python -m experiments.train --config=experiments/configs/saf_digits.py --workdir=runs/saf_digits

The other methods: --config.method=sgd, mesa or sam. Fashion-MNIST: --config.dataset=fashion_mnist.
"""

import ml_collections

from experiments.studies import classification


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = classification.get_default()
    config.method = "saf"
    config.saf_weight = 3.0  # ten times the paper's, whose effect on so small a task is faint
    config.label_noise = 0.2
    config.model = "mlp"
    config.width = 128
    config.depth = 2
    config.num_epochs = 30
    config.batch_size = 128
    config.learning_rate = 0.1
    config.log_every = 11  # once an epoch
    config.checkpoint_every = 110  # every tenth: writing one takes longer than an epoch of steps
    if mode == "smoke":
        config.num_epochs = 3
        config.checkpoint_every = 0
        config.start_epoch = 0
        config.saf_lag_epochs = 1
        config.width = 16
    elif mode:
        raise ValueError(f'saf_digits: mode must be "" or "smoke", got {mode!r}.')
    return config
