"""What the heap of a rank keeps after blocks are freed."""

import json
import subprocess
import sys

import pytest

from wellread.train import heap

MIB = 2**20
PROGRAM = """
import json, sys
import numpy as np
from wellread.train import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

kept = heap.keep_freed() if sys.argv[1] == "keep" else False
before = resident()
sizes = [16, 64]
freed = []
for size in sizes:
    blocks = [np.ones(size * 2**20, np.uint8) for _ in range(4)]
    full = resident() - before
    del blocks
    freed.append(full - (resident() - before))
print(json.dumps([kept, freed]))
"""


@pytest.mark.parametrize(("how", "returned"), [("keep", 0), ("default", 64)])
def test_small_blocks_stay_and_large_ones_go(how: str, returned: int) -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    changed, (small, large) = json.loads(process.stdout)
    assert changed is (how == "keep")
    assert abs(small - returned * MIB) < 4 * MIB
    assert large > 3 * 60 * MIB  # one may be in the place of the small ones


@pytest.mark.parametrize("name", heap.SET_BY_USERS)
def test_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "131072")
    assert heap.keep_freed() is False
