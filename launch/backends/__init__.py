"""Kinds of clusters, one backend each: a new one is a module or folder here, and one entry of the table."""

BACKENDS = {
    "local": "launch.backends.local:Local",
    "hostfile": "launch.backends.ssh.backend:Ssh",
    "slurm": "launch.backends.slurm.backend:Slurm",
}
"""Kind in a cluster's file -> the `launch.backends.base.Backend` that serves it, imported when it is asked for."""
