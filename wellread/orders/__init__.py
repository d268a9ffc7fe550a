"""Orders: from what `--order` says to the sample ids of a run, kept in the run directory, and back."""
