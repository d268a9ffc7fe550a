"""Planning: what a run will do and how much memory it needs, computed before anything starts."""
