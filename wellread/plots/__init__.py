"""Plots: functions from numbers to a `Figure`. Text of a run is only ever data of a figure, never part of a script."""
