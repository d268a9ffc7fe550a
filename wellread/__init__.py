"""Launch LLM training across nodes, and know exactly what every checkpoint has read."""

__version__ = "0.1.0"
