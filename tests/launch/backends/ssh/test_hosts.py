"""Lines of a hostfile, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.backends.ssh.hosts import Host, hosts
from launch.cluster import ClusterFile
from wellread.errors import UserError


def listed(tmp_path: Path, text: str) -> list[Host]:
    (tmp_path / "hosts").write_text(text)
    return hosts(ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts")))


def test_lines_of_a_hostfile(tmp_path: Path) -> None:
    text = """# DeepSpeed's form
worker-1 slots=8

worker-2.example.org   slots = 4   # the old one
me@127.0.0.2 slots=1
[::1] slots=2
fe80::1
plain
"""
    assert listed(tmp_path, text) == [
        Host("worker-1", 8), Host("worker-2.example.org", 4), Host("me@127.0.0.2", 1), Host("[::1]", 2),
        Host("fe80::1", 1), Host("plain", 1),
    ]  # fmt: skip


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfworker-1 slots=2\r\nworker-2\r\n")
    cluster = ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts"))
    assert hosts(cluster) == [Host("worker-1", 2), Host("worker-2", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\nb slots=none\n", " line 2: 'b slots=none' is not a host; write host slots=N"),
        ("a slots=0\n", " line 1: 'a slots=0' is not a host; write host slots=N"),
        ("a slots=-1\n", " line 1: 'a slots=-1' is not a host; write host slots=N"),
        ("# x\n\na 8\n", " line 3: 'a 8' is not a host; write host slots=N"),
        ("a slots=2 b slots=2\n", " line 1: 'a slots=2 b slots=2' is not a host; write host slots=N"),
        (
            "-oProxyCommand=reboot slots=1\n",
            " line 1: '-oProxyCommand=reboot slots=1' is not a host; write host slots=N",
        ),
        ("-lroot\n", " line 1: '-lroot' is not a host; write host slots=N"),
        ("$(reboot) slots=1\n", " line 1: '$(reboot) slots=1' is not a host; write host slots=N"),
        ("a;reboot slots=1\n", " line 1: 'a;reboot slots=1' is not a host; write host slots=N"),
        ("a slots=2\nb\na slots=4\n", " line 3: a appears twice; raise its slots instead"),
        (f"a slots={'9' * 5000}\n", f" line 1: 'a slots={'9' * 112}…' is not a host; write host slots=N"),
        ("a slots=10000000\n", " line 1: 'a slots=10000000' is not a host; write host slots=N"),
        ("a\x1b]0;x\x07 slots=1\n", r" line 1: 'a\x1b]0;x\x07 slots=1' is not a host; write host slots=N"),
        ("a\u202eb slots=2\n", r" line 1: 'a\u202eb slots=2' is not a host; write host slots=N"),
        ("a slots=\u0661\n", " line 1: 'a slots=\u0661' is not a host; write host slots=N"),
        ("# nothing\n\n", ": contains no hosts; write 'host slots=N', one per line"),
    ],
)
def test_mistakes_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path, text)
    assert str(error.value) == f"hostfile {tmp_path}/hosts{message}"


def test_a_missing_hostfile(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        hosts(ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts")))
    assert str(error.value) == (
        f"hostfile {tmp_path}/hosts: not found; "
        "write 'host slots=N', one per line, or set hostfile: in the cluster file"
    )


def test_a_hostfile_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match=r"hosts: is UTF-16; save it as UTF-8"):
        hosts(ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts")))


def test_a_hundred_thousand_hosts_are_read_at_once(tmp_path: Path) -> None:
    assert len(listed(tmp_path, "".join(f"node-{number} slots=8\n" for number in range(100_000)))) == 100_000
