"""Kinds of clusters, one backend each: a new one is a module or folder here, and one entry in launch/cluster.py."""
