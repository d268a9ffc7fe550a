"""One backend per kind of cluster. A new backend is a module or folder here and an entry in launch/cluster.py."""
