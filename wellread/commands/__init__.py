"""Commands that need only a run directory and this package, without a checkout."""
