"""Reading files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wellread.errors import UserError
from wellread.files import load_array


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
