"""How a cluster file is saved: editors on Windows write a byte-order mark and other ends of lines."""

from __future__ import annotations

from pathlib import Path

from launch.cluster import load


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbfkind: slurm\r\npartition: gpu\r\n")
    assert (load(str(file)).kind, load(str(file)).partition) == ("slurm", "gpu")
