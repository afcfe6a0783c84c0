"""Configs, figures, notebooks and the commands that launch them."""
