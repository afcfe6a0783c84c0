"""Does trained softmax attention do what one gradient step of softmax regression does?

python -m experiments.train --config=experiments/configs/in_context_closeness.py
    --workdir=runs/in_context_closeness

Three seeds of all nine sizes, in about ten minutes:
python -m experiments.sweep --config=experiments/configs/in_context_closeness.py
    --workdir=runs/closeness --grid=num_rows=25,50,100 --grid=dim=5,10,20 --grid=seed=0,1,2
    --metric=closeness/ratio

About a minute on two cores for n = 100, d = 5; d = 20 wants --config.num_epochs=120.
The probe `closeness` in metrics.jsonl ends with a cosine of sensitivities above 0.99.
"""

import ml_collections

from experiments.studies import in_context_closeness


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config of the study; mode "smoke" is a run of seconds."""
    config = in_context_closeness.get_default()
    config.batch_size = 64
    config.num_epochs = 40  # of 100 steps
    config.learning_rate = 1e-2
    config.log_every = 100
    config.eval_every_epochs = 10
    config.probe_every = 500
    if mode == "smoke":
        config.num_rows = 8
        config.dim = 3
        config.num_queries = 4
        config.train_size = 128
        config.eval_size = 64
        config.num_epochs = 2
        config.probe_every = 2
    elif mode:
        raise ValueError(f'in_context_closeness: mode must be "" or "smoke", got {mode!r}.')
    return config
