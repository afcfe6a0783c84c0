"""A small transformer on the bytes of real text, under one of several learning-rate schedules."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from scaling_laws import curves
from shared import data, models
from shared.train import Outputs, Study, compute_in, default_config

SCHEDULES = ("constant", "cosine", "linear", "wsd", "two_stage")


class NextToken:
    """Mean cross-entropy of the next byte; it has no state."""

    def __init__(self, model: models.Model):
        self.model = model

    def init(self, params, num_examples, *, model_state=()):
        """Nothing to remember."""
        del params, num_examples, model_state
        return ()

    def loss(self, params, model_state, state, batch, epoch, key):
        """(loss, Outputs) of a batch."""
        del state, epoch
        tokens = batch["tokens"]
        logits, model_state = self.model.apply(
            params, model_state, tokens[:, :-1], train=True, key=key
        )
        loss = models.next_token_loss(logits, tokens).mean()
        return loss, Outputs(logits, model_state, {"loss": loss})

    def update(self, state, *, params, model_state, logits, batch, epoch):
        """Nothing to update."""
        del params, model_state, logits, batch, epoch
        return state


def get_default() -> ml_collections.ConfigDict:
    """The loop's keys and those of this study."""
    config = default_config()
    config.study = "text_schedules"
    config.text = ""  # a text file, or a folder whose files are joined; "": the licences of the OS
    config.context_length = 64  # bytes
    config.width = 64
    config.depth = 2
    config.num_heads = 4
    config.schedule = "cosine"  # one of SCHEDULES
    config.warmup_steps = 50
    config.end_rate = 0.1  # of the peak
    config.decay_start = 0.7  # of the steps, for "wsd" and "two_stage"
    config.weight_decay = 0.1
    return config


def rates_of(config: Any) -> np.ndarray:
    """The learning rate of every step.

    Raises:
      ValueError: `config.schedule` is not one of SCHEDULES.
    """
    peak, steps, warmup = config.learning_rate, config.num_steps, config.warmup_steps
    end, switch = config.end_rate * peak, round(config.decay_start * steps)
    made = {
        "constant": lambda: curves.constant(steps, peak=peak, warmup=warmup),
        "cosine": lambda: curves.cosine(steps, peak=peak, end=end, warmup=warmup),
        "linear": lambda: curves.wsd(steps, peak=peak, decay_start=warmup, end=end, warmup=warmup),
        "wsd": lambda: curves.wsd(steps, peak=peak, decay_start=switch, end=end, warmup=warmup),
        "two_stage": lambda: curves.two_stage(
            steps, peak=peak, switch=switch, end=0.3 * peak, warmup=warmup
        ),
    }
    if config.schedule not in made:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, got {config.schedule!r}."
        )
    return made[config.schedule]()


def find_text(path: str) -> Path:
    """The text to train on: the file or folder named, or a folder of the operating system's.

    Raises:
      ValueError: there is none.
    """
    places = [Path(path)] if path else [Path("/usr/share/common-licenses"), Path("/usr/share/doc")]
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"text: none of {[str(p) for p in places]} exists; set config.text.")


def load_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, or of a folder's files joined in alphabetical order, links left out.

    Raises:
      ValueError: the folder holds no files itself; those of folders in it are not read.
    """
    if path.is_file():
        return np.fromfile(path, np.uint8)
    files = [f for f in sorted(path.iterdir()) if f.is_file() and not f.is_symlink()]
    if not files:
        raise ValueError(
            f"text: {path} holds no files, only folders perhaps; set config.text to a file or to "
            "a folder with the files directly in it."
        )
    return np.concatenate([np.fromfile(f, np.uint8) for f in files])


def build(config: Any) -> Study:
    """Data, network, objective and optimizer of a run."""
    rates = rates_of(config)
    stream = load_bytes(find_text(config.text))
    # Every twentieth window is kept for evaluation: the files differ, so the end alone is no test.
    size = config.context_length + 1
    windows = stream[: len(stream) // size * size].reshape(-1, size)
    held_out = np.arange(len(windows)) % 20 == 10

    def source(rows, name):
        return _Windows(windows[rows], name)

    model = compute_in(
        models.transformer(
            vocabulary_size=256,
            width=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
        ),
        config.compute_dtype,
    )
    table = jnp.asarray(rates, jnp.float32)
    optimizer = optax.adamw(
        lambda step: table[jnp.minimum(step, len(rates) - 1)],
        b2=0.95,
        weight_decay=config.weight_decay,
    )
    return Study(
        model=model,
        train_data=source(~held_out, "text"),
        objective=NextToken(model),
        optimizer=optimizer,
        eval_data={"val": source(held_out, "held-out text")},
    )


class _Windows:
    """Separate windows of bytes as a source of the loop."""

    def __init__(self, windows: np.ndarray, name: str):
        if len(windows) == 0:
            raise data.DataError(f"{name} is shorter than one window.")
        self.windows = windows
        self.name = name
        self.vocabulary_size = 256

    @property
    def num_examples(self) -> int:
        return len(self.windows)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int32)
        return {"tokens": self.windows[indices].astype(np.int32), "index": indices}

    def __repr__(self) -> str:
        return f"{self.name}: {len(self.windows)} windows of {self.windows.shape[1]} bytes"
