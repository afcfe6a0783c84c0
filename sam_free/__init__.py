"""Sharpness-aware training for free: SAF, MESA, the SAM family and sharpness measures."""
