"""Checks before a job does: of this machine, and of the nodes of a cluster."""
