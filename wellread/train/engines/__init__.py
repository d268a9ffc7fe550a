"""Engines, which run forward, backward and the optimizer: torch (one process or DDP), and DeepSpeed ZeRO."""
