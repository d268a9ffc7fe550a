"""Launch a run: plan it, start its ranks, return its exit code."""
