"""The reading record: what every step really read, and every question asked of it."""
