"""Models: names, loading, losses."""
