"""What the launcher asks a host of a hostfile before a run is planned."""

from pathlib import Path

import pytest

from launch import devices
from launch.backends.ssh import connections
from launch.backends.ssh.backend import Ssh
from launch.cluster import ClusterFile
from wellread.errors import UserError


def test_a_host_is_asked_for_its_gpus(tmp_path: Path) -> None:
    script = tmp_path / "ssh"
    file = ClusterFile(name="ours", kind="hostfile", hostfile="hosts", ssh=str(script), python="/opt/python")

    def answer(text: str) -> int:
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        return connections.count_gpus(file, "a")

    assert answer("echo Welcome 2 you; echo 8") == 8
    assert answer('case "$*" in *"a cd "*"exec /opt/python -m launch.devices") echo 4;; esac') == 4
    for text, reason in (("echo 'no route to host' >&2; exit 255", " (no route to host)"), ("true", "")):
        with pytest.raises(UserError) as error:
            answer(text)
        assert str(error.value) == (
            f"--cluster ours: cannot ask a for its GPUs{reason}; set device: cuda or cpu in the cluster file"
        )


@pytest.mark.parametrize(
    ("host", "local", "remote", "device"), [("a", 2, 0, "cpu"), ("a", 0, 2, "cuda"), ("me@localhost", 2, 0, "cuda")]
)
def test_the_device_is_that_of_the_host(
    host: str, local: int, remote: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workstation with GPUs may launch on hosts without, and the other way round."""
    monkeypatch.setattr(devices, "count_gpus", lambda: local)
    monkeypatch.setattr(connections, "count_gpus", lambda file, host: remote)
    (tmp_path / "hosts").write_text(f"{host} slots=1\n")
    file = ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts"))
    assert Ssh(file).probe(1, "auto").device == device
