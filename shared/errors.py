"""Ends of a run that are told to its user in one line."""


class RunError(Exception):
    """A run cannot go on; the message says why and what to do."""


class NonFiniteLoss(RunError):
    """The loss or the parameters are NaN or infinite; the last good checkpoint is kept."""


class BadBatch(NonFiniteLoss):
    """The loss is not finite because of what stands in the batch; the message names it."""


class CheckpointError(RunError):
    """No checkpoint can be used, or one cannot be written."""
