"""Commands that need a run directory and this library alone."""
