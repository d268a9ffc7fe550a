"""Sections about the run itself; those of evaluations are in the folder of the evaluation."""
