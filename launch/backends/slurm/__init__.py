"""Clusters whose queue is SLURM."""
