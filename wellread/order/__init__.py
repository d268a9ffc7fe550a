"""Orders: which sample each slot of each batch reads, and which slots read a sample, in constant time."""
