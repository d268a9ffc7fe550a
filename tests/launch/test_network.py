"""Addresses and interfaces between nodes, with the loopback as the network."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil
import pytest

from launch import network
from launch.network import own_address, source_address, with_interface

BOTH = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BOTH:
        monkeypatch.delenv(name, raising=False)


def test_a_single_node_uses_the_loopback() -> None:
    assert own_address(["a-host-that-nobody-knows.invalid"]) == "127.0.0.1"


def test_the_address_is_the_one_on_the_route_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[str] = []
    monkeypatch.setattr(network, "source_address", lambda host: hosts.append(host) or "192.0.2.7")
    assert own_address(["n1", "n2", "n3"]) == "192.0.2.7"
    assert hosts == ["n2"]


def test_the_route_to_the_loopback() -> None:
    assert source_address("127.0.0.1") == source_address("localhost") == source_address("127.0.0.9") == "127.0.0.1"


def test_an_unknown_host() -> None:
    with pytest.raises(socket.gaierror):
        source_address("a-host-that-nobody-knows.invalid")


def test_the_interface_is_set_unless_already_set(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = with_interface({"A": "b"}, "127.0.0.1")
    assert variables.pop("A") == "b"
    assert set(variables) == BOTH
    addresses = {
        a.address for a in psutil.net_if_addrs()[variables["GLOO_SOCKET_IFNAME"]] if a.family == socket.AF_INET
    }
    assert "127.0.0.1" in addresses
    assert len(set(variables.values())) == 1

    setting = {"NCCL_SOCKET_IFNAME": "ib0"}
    assert with_interface(setting, "127.0.0.1") == setting
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert with_interface({"A": "b"}, "127.0.0.1") == {"A": "b"}


def test_the_interface_that_has_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def interface(*addresses: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(address=address) for address in addresses]

    monkeypatch.setattr(network, "source_address", lambda host: "192.0.2.7")
    interfaces = {
        "lo": interface("127.0.0.1"),
        "eth0": interface("198.51.100.1"),
        "ib0": interface("fe80::1", "192.0.2.7"),
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    assert with_interface({}, "n2") == dict.fromkeys(BOTH, "ib0")
    del interfaces["ib0"]
    assert with_interface({}, "n2") == {}
