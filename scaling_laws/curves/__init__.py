"""Loss curves: read logs as they are, repair them, and say what was repaired."""

from scaling_laws.curves._curve import Curve as Curve
