"""Addresses and network interfaces between the nodes of a run."""

from __future__ import annotations

import os
import socket

from launch.environment import INTERFACE_VARIABLES


def own_address(hosts: list[str]) -> str:
    """Address of this machine, the first of the job's `hosts`, on the route to the others."""
    return "127.0.0.1" if len(hosts) == 1 else source_address(hosts[1])


def source_address(host: str) -> str:
    """Address (IPv4) that this machine has on the route to `host`.

    Raises
    ------
    OSError
        When the name is unknown here or no route leads there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only makes the kernel choose a route
        address: str = probe.getsockname()[0]
        return address


def with_interface(variables: dict[str, str], host: str) -> dict[str, str]:
    """`variables`, and where nobody has named the interface between the nodes, the one on the route to `host`."""
    import psutil

    if any(name in variables or name in os.environ for name in INTERFACE_VARIABLES):
        return variables
    address = source_address(host)
    names = [name for name, of in psutil.net_if_addrs().items() if any(a.address == address for a in of)]
    return variables | (dict.fromkeys(INTERFACE_VARIABLES, names[0]) if names else {})
