"""Planning: what a run will need and do, before anything starts."""
