"""Which samples can be extracted from a checkpoint, decided from token columns without generating."""
