"""Plots: numbers in, the bytes of a picture out. No title and no names, so nothing to escape."""
