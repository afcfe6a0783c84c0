"""Speed and memory beside what a user would pick instead, as ratios of one run."""
