"""The training loop that every study runs on."""
