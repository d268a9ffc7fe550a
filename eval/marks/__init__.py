"""Whether a checkpoint has learned the forms that coins picked, by an exact test against redraws of the coins."""
