"""Clusters with SLURM."""
