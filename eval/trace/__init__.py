"""From a text back to the batches in which a checkpoint has read its spans."""
