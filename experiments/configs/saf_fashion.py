"""SAF on 10,000 images of Fashion-MNIST, a fifth of the labels replaced by uniform draws.

python -m experiments.train --config=experiments/configs/saf_fashion.py --workdir=runs/saf_fashion

The other methods: --config.method=sgd, mesa, sam, gsam, looksam, esam, uniform or averaged. The
digits stand in where Fashion-MNIST is not installed. The table over methods and seeds is made by
`python -m experiments.saf_study`.
"""

import ml_collections

from experiments.studies import classification
from shared import data


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds on the digits."""
    config = classification.get_default()
    config.method = "saf"
    config.dataset = "fashion_mnist"
    config.train_size = 10_000
    config.label_noise = 0.18  # wrong labels: a tenth of the fifth that is drawn anew is right
    config.model = "mlp"
    config.width = 256
    config.depth = 2
    config.num_epochs = 20
    config.batch_size = 128
    config.learning_rate = 0.05
    config.log_every = 78  # once an epoch
    if mode == "smoke" or data.find_fashion_mnist() is None:
        config.dataset = "digits"
        config.train_size = 0
        config.log_every = 11
    if mode == "smoke":
        config.num_epochs = 3
        config.start_epoch = 0
        config.saf_lag_epochs = 1
        config.width = 16
    elif mode:
        raise ValueError(f'saf_fashion: mode must be "" or "smoke", got {mode!r}.')
    return config
