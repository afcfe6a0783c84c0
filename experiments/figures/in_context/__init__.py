"""Figures F1 to F12 of in-context learning as softmax regression."""
