"""Network addresses and interfaces between the nodes of a run."""

from __future__ import annotations

import os
import socket

from launch.environment import INTERFACE_VARIABLES


def own_address(hosts: list[str]) -> str:
    """Return the address of this machine, the first of the job's `hosts`, on the route to the other hosts."""
    return "127.0.0.1" if len(hosts) == 1 else source_address(hosts[1])


def source_address(host: str) -> str:
    """Return the IPv4 address of this machine on the route to `host`.

    Raises
    ------
    OSError
        When the name does not resolve or there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: the kernel only chooses a route
        address: str = probe.getsockname()[0]
        return address


def with_interface(variables: dict[str, str], host: str) -> dict[str, str]:
    """Add the interface on the route to `host` to `variables`, unless an interface is already set."""
    import psutil

    if any(name in variables or name in os.environ for name in INTERFACE_VARIABLES):
        return variables
    address = source_address(host)
    names = [name for name, of in psutil.net_if_addrs().items() if any(a.address == address for a in of)]
    return variables | (dict.fromkeys(INTERFACE_VARIABLES, names[0]) if names else {})
