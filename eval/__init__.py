"""Evaluations of the checkpoints and the record of a run."""
