"""Launching a run on many machines: TPU VMs, Kubernetes, SLURM, and several processes here.

Nothing here needs a cloud's software to be imported or tested: scripts call the commands that a
user has, `gcloud`, `kubectl`, `sbatch`. Every way ends in the same `python -m experiments.train`.
"""
