"""Loss curves: read logs as they are, repair them, and say what was repaired."""

from scaling_laws.curves._curve import Curve as Curve
from scaling_laws.curves._read import read as read
from scaling_laws.curves._read import repair as repair
from scaling_laws.curves._schedules import constant as constant
from scaling_laws.curves._schedules import cosine as cosine
from scaling_laws.curves._schedules import interpolate as interpolate
from scaling_laws.curves._schedules import two_stage as two_stage
from scaling_laws.curves._schedules import wsd as wsd
