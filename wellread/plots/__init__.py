"""Plots: functions from numbers to the bytes of an image. Plots have no title and no names, so no text to escape."""
