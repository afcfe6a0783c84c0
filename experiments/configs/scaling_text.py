"""A transformer of 0.1 million parameters on the bytes of real text, under one schedule.

python -m experiments.train --config=experiments/configs/scaling_text.py --workdir=runs/text_cosine
    [--config.schedule=wsd]

`python -m experiments.text_law --workdir=runs/text_law` trains it under five schedules and fits the
laws to three of them. About three minutes a run on two quiet cores; the text is
/usr/share/common-licenses of Debian and its kin (--config.text=FILE for another).
"""

import ml_collections

from experiments.studies import text_schedules


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = text_schedules.get_default()
    config.learning_rate = 3e-3
    config.num_steps = 2000
    config.batch_size = 32
    config.eval_every_epochs = 0
    config.log_every = 20
    if mode == "smoke":
        config.num_steps = 240
        config.warmup_steps = 10
        config.width = 16
        config.depth = 1
        config.context_length = 16
        config.batch_size = 8
        config.log_every = 2
    elif mode:
        raise ValueError(f'scaling_text: mode must be "" or "smoke", got {mode!r}.')
    return config
