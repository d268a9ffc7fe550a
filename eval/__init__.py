"""Questions asked of checkpoints and of the record."""
