"""Infinite-width and empirical neural tangent kernels."""
