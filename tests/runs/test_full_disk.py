"""A disk that fills up (a small tmpfs): one line of error, and saved checkpoints stay valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.programs import ROOT
from support.whole_runs import OLD

from wellread.checkpoint import list_checkpoints, name_of, newest_valid
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.units import MIB

pytestmark = pytest.mark.slow

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Disk = Callable[[int], Path]


def assert_disk_full(result: subprocess.CompletedProcess[str], place: Path) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"disk full: {place}" in result.stderr
    assert "free some space, then run the same command again" in result.stderr


@pytest.mark.parametrize(
    ("kib", "what"),
    [(256, "shards"), *(pytest.param(*case, marks=pytest.mark.long) for case in ((64, "tokenizer"), (700, "samples")))],
)
def test_disk_full_while_compiling(program: Program, disk: Disk, tmp_path: Path, kib: int, what: str) -> None:
    """The first file that does not fit is one of `what`."""
    corpora = disk(kib << 10) / "corpora"
    flags = ("launch", "run", "finetune", "--corpora", corpora, "--out", tmp_path / "run", "--steps", 1)
    result = program(*flags)
    assert_disk_full(result, corpora)
    assert not corpora.exists()
    assert not (tmp_path / "run").exists()

    disk(16 * MIB)
    compiled = program("finetune", "prepare", *flags[3:], check=True)
    assert "compiling 664 rows of sample into" in compiled.stdout


@pytest.mark.long
def test_disk_full_while_saving(program: Program, corpora: Path, disk: Disk) -> None:
    """A checkpoint takes 30 MiB, a third of it the model. The first one contains only the model.

    Four models and three states are 100 MiB, and the check before the start knows it.
    """
    run = RunDirectory(disk(60 * MIB) / "run")
    flags = (
        *("launch", "run", "finetune", "--corpora", corpora, "--out", run.path, "--ranks_per_node", 2),
        *("--steps", 6, "--save_every", 2, "--batch_size", 8, "--seq_len", 128, "--holdout", 0.05),
    )
    refused = program(*flags)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    match = re.search(r"has ([\d.]+) GiB of disk for checkpoints, ([\d.]+) are needed", refused.stderr)
    assert match, refused.stderr
    assert 0 < float(match[1]) <= 0.06
    assert float(match[2]) == 0.10
    assert list(run.checkpoints.iterdir()) == []

    full = program(*flags, "--force")
    assert_disk_full(full, run.checkpoints)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [name_of(0), name_of(2)]  # no staging directory
    newest, damaged = newest_valid(run.checkpoints)  # by the hashes of its manifest
    assert newest is not None
    assert (newest.step, damaged) == (2, {})

    disk(256 * MIB)
    result = program(*flags, check=True)
    assert "resuming from step-00000002\n" in result.stdout
    assert [c.step for c in list_checkpoints(run.checkpoints)] == [0, 2, 4, 6]
    verified = program("eval", "verify", run.path, check=True)
    assert verified.stdout.startswith("verified: 6 batches, ")
    assert verified.stdout.endswith(f" checkpoints agree, head {Record.open(run.record).head}\n")


ASKED = {
    "membership": ("membership", "RUN", "--steps", "10", "--bootstrap", "100"),
    "report": ("report", "RUN"),
    "csv": ("read", "RUN", "--batch", "0:10", "--csv", "DISK/batches.csv"),
    "token ids": ("read", "RUN", "--batch", "0:10", "--save", "DISK/batches.npy"),
    "jsonl": ("read", "RUN", "--batch", "0:10", "--jsonl", "DISK/batches.jsonl"),
    "export": ("export", "RUN", "--out", "DISK/exported"),
}
"""Questions about a run that write to the disk."""


@pytest.mark.parametrize(
    "question", [pytest.param(q, marks=[pytest.mark.long] * (q in ("csv", "jsonl", "export"))) for q in ASKED]
)
def test_disk_full_while_a_run_is_read(question: str, disk: Disk) -> None:
    """The error names a place on the disk; a write to a mapped file must not end the process with SIGBUS."""
    place = disk(8 * MIB)
    shutil.copytree(OLD / "finetune" / "run", place / "run")
    with suppress(OSError), open(place / "rest", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    before = {path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"}
    command = [word.replace("RUN", str(place / "run")).replace("DISK", str(place)) for word in ASKED[question]]
    result = subprocess.run([sys.executable, "-m", "wellread", *command], cwd=ROOT, capture_output=True, text=True)
    result.stderr = "".join(line for line in result.stderr.splitlines(keepends=True) if not line.startswith("no TPR"))
    assert_disk_full(result, place)
    after = {path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"}  # locks are empty
    assert after == before
