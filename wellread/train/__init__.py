"""The training loop and its two engines."""
