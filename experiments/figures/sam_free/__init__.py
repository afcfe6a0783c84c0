"""Figures of sharpness-aware training."""
