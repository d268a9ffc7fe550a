"""The doctor's checks of this machine and of the nodes of a cluster."""
