"""One loss curve and the learning rate of every step."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """A training run as the laws see it.

    steps: increasing integers [points]; the loss at step t has seen the update with rate
    `learning_rates[t]`, so the first update is step 0. losses: [points], positive.
    learning_rates: [steps], the rate of every step. params: model size, for laws that take it.
    repairs: what a reader changed, in words.
    """

    steps: np.ndarray
    losses: np.ndarray
    learning_rates: np.ndarray
    name: str = "curve"
    params: float | None = None
    repairs: tuple[str, ...] = ()

    @property
    def warmup_steps(self) -> int:
        """Steps before the rate first reaches its maximum; 0 if it starts there."""
        return int(np.argmax(np.asarray(self.learning_rates)))

    def up_to(self, step):
        """The same run stopped after `step`: its points so far, the whole planned schedule."""
        keep = np.asarray(self.steps) <= step
        return dataclasses.replace(self, steps=self.steps[keep], losses=self.losses[keep])

    def after(self, step):
        """Only the points after `step`."""
        keep = np.asarray(self.steps) > step
        return dataclasses.replace(self, steps=self.steps[keep], losses=self.losses[keep])
