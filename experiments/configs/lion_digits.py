"""Lion on scikit-learn's digits from five times the usual start: the box |w| <= 1 / 10 is reached.

python -m experiments.train --config=experiments/configs/lion_digits.py --workdir=runs/lion_digits

Under a minute on two cores. metrics.jsonl shows the probe `lion`: `violation` falls at least like
(1 - 0.002 * 10)^step, from 524 to 0.0005 at step 660 (one seed). The constraint is met in the
limit, so `phase` is still 1 there. Expect a test accuracy of 0.85.
"""

import ml_collections

from experiments.studies import lion_digits


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = lion_digits.get_default()
    config.kappa = "l1"
    config.init_scale = 5.0
    config.learning_rate = 2e-3
    config.weight_decay = 10.0
    config.num_epochs = 60
    config.batch_size = 128
    config.log_every = 11
    config.probe_every = 55
    if mode == "smoke":
        config.num_epochs = 2
        config.width = 16
        config.probe_every = 11
    elif mode:
        raise ValueError(f'lion_digits: mode must be "" or "smoke", got {mode!r}.')
    return config
