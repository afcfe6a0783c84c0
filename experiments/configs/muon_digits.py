"""Muon with certified Newton-Schulz on digits: every matrix stays in its spectral ball.

python -m experiments.train --config=experiments/configs/muon_digits.py --workdir=runs/muon_digits

Under a minute on two cores. The probe `lion` shows `violation` at rounding level (3e-6) in phase 2,
and the loss under the bound |W|_op <= sqrt(max(1, out / in)) / weight_decay. Expect a test accuracy
of 0.93 (one seed).
"""

import ml_collections

from experiments.studies import lion_digits


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = lion_digits.get_default()
    config.kappa = "muon"
    config.b1 = 0.9025  # Keller Jordan's Nesterov mix: the square of b2
    config.b2 = 0.95
    config.learning_rate = 0.02
    config.schedule = "cosine"
    config.weight_decay = 0.5
    config.num_epochs = 30
    config.batch_size = 128
    config.log_every = 11
    config.probe_every = 55
    if mode == "smoke":
        config.num_epochs = 2
        config.width = 16
        config.probe_every = 11
    elif mode:
        raise ValueError(f'muon_digits: mode must be "" or "smoke", got {mode!r}.')
    return config
