"""Membership: what a checkpoint has read against what was sealed."""
