"""Figures of the laws of loss: where schedules, methods and intervals go wrong."""
