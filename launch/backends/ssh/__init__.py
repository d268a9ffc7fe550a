"""Machines that are reached through ssh."""
