"""The error about a run directory that contains another run: the causes, in words that a user knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.run_folders import run_folder

from launch.identity import refuse_other
from wellread.errors import UserError
from wellread.files import write_json

EXISTING: dict[str, Any] = {
    "model": "fresh:1",
    "corpus": "39411bd",
    "order": {"n": 2632, "batch_size": 8, "kind": "shuffle"},
    "batch_size": 8,
    "seq_len": 512,
    "steps": 12,
}


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        (
            {"corpus": "b015", "order": {"n": 5291, "batch_size": 8, "kind": "shuffle"}},
            "trainable samples 2,632, requested 5,291",
        ),
        (
            {"batch_size": 16, "order": {"n": 2632, "batch_size": 16, "kind": "shuffle"}},
            "batch_size is 8, requested 16",
        ),
        ({"corpus": "b015", "seq_len": 256}, "seq_len is 512, requested 256"),
        ({"corpus": "b015"}, "hash of the corpus (--data and its settings) 39411bd, requested b015"),
        (
            {"model": "fresh:2", "steps": 13},
            "steps is 12, requested 13; hash of the model (--model) fresh:1, requested fresh:2",
        ),
    ],
)
def test_differences_of_runs(changes: dict[str, Any], differences: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    write_json(run.manifest_file, {"version": 1, "attempts": [], "identity": EXISTING})
    with pytest.raises(UserError) as refused:
        refuse_other(run, EXISTING | changes)
    assert str(refused.value) == f"{run.path}: contains another run ({differences}); choose another --out"
    refuse_other(run, EXISTING)
