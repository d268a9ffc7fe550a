"""Curricula that would need more memory than any machine has are refused when they are read."""

from pathlib import Path

import pytest

from wellread.errors import UserError
from wellread.order import curriculum

PHASE = "phases: [{order: shuffle}]\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("phases: [{steps: 1000000000000}]", r"phases\[0\]\.steps: 1000000000000; choose at most 10,000,000"),
        ("phases: [{epochs: 1.0e+30}]", r"phases\[0\]\.epochs: 1e\+30; expected a number above 0, at most 100,000"),
        ("phases: [{epochs: .inf}]", r"phases\[0\]\.epochs: inf"),
        (PHASE + "insert: [{tag: a, samples: 1, at: {stop: 1000000000000000000000}}]", r"insert\[0\]\.at: more than"),
        (PHASE + "a: &a [*a]", "describes more than 10,000,000 values"),
    ],
)
def test_it_is_refused_early(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        curriculum.read(tmp_path / "a.yaml", "--order curriculum:a.yaml")
