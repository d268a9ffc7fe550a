"""How much of something is in memory at a time: sizes that the plan counts with. Imports no torch."""

LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 24}
"""Logits that the loss has in fp32 at a time, twice: 16 MiB on a CPU, for its caches; 128 on a GPU, which wants much to
do at once."""
