"""Orders: functions from a slot of a batch to its sample, and from a sample to its slots, in constant time."""
