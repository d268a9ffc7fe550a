"""Data: where rows and documents come from, what they become, and what ``--data`` names."""
