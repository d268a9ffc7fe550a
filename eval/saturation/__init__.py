"""Saturation: when the metrics of a run stop changing, and what the model read until then."""
