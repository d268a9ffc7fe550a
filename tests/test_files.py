"""Reading files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wellread.errors import UserError
from wellread.files import load_array, release


def test_every_byte_of_a_header_may_be_damaged(tmp_path: Path) -> None:
    """numpy parses the header as Python: a parser has many kinds of errors."""
    path = tmp_path / "a.npy"
    np.save(path, np.arange(17))
    content = path.read_bytes()
    refusals = []
    for place in range(128):
        for value in (0, 10, 32, 34, 39, 40, 44, 57, 91, 92, 123, 125, 255):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                load_array(path, "restore it")
            except UserError as error:
                refusals.append(str(error))
    assert len(refusals) > 700
    assert all(line.startswith(f"{path}: damaged (") and "\n" not in line for line in refusals)


@pytest.mark.parametrize("length", [0, 1, 6, 10, 50, 127, 128, 200])
def test_a_shortened_array_is_damaged(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(17))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.npy: damaged"):
        load_array(path, "restore it")


def test_a_released_array_is_read_again_and_leaves_the_memory(tmp_path: Path) -> None:
    """80 MB of ones: after their sum they are in memory, after `release` they are not; a small array stays."""

    def mapped_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024

    np.save(tmp_path / "a.npy", np.ones(10_000_000))
    array = load_array(tmp_path / "a.npy", "restore it")
    before = mapped_mib()
    assert array.sum() == 10_000_000
    assert mapped_mib() - before > 70
    release(array[5:])
    assert mapped_mib() - before < 5
    assert array.sum() == 10_000_000
    part = array[:1000]
    release(part)
    assert mapped_mib() - before > 70
    release(np.ones(10_000_000))  # no file is mapped
