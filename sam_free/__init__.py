"""Sharpness-aware training for free: SAF, MESA, the SAM family and sharpness measures."""

from sam_free._batch import Outputs as Outputs
from sam_free._losses import cross_entropy as cross_entropy
from sam_free._losses import label_smoothing as label_smoothing
from sam_free._saf import SAF as SAF
from sam_free._saf import saf as saf
from sam_free._sam import sam_gradient as sam_gradient
from sam_free._table import Table as Table
from sam_free._table import check_index as check_index
from sam_free._trajectory import trajectory_loss as trajectory_loss
