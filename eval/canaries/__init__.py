"""Which canaries a checkpoint remembers, by an exact test against controls of the same draw."""
