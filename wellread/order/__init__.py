"""Orders: which sample each slot of each batch reads, in constant time, both ways."""
