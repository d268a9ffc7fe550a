"""Models: registry, loading, writing, generation, losses."""
