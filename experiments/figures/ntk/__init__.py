"""Figures of wide networks and their kernels."""
