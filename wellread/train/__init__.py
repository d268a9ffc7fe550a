"""The one training loop and its two engines."""
