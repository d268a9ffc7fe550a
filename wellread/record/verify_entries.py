"""Verify which files a run has: whatever a reader would take for a file of the run is one of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wellread.corpus.canaries import FILE as CANARIES
from wellread.corpus.marks import FILE as MARKS
from wellread.order.permutation import Order
from wellread.record import sealed
from wellread.record.findings import Findings
from wellread.record.reader import Record
from wellread.record.writer import COLUMNS
from wellread.run import RunDirectory

FILES = ("config.yaml", "plan.json", "manifest.json")
"""Files of every run."""
ELSEWHERE = re.compile(
    r"(corpus|head|checkpoint)\.json|(samples|segments|metrics)\.parquet|tokens\.bin|(part|sealed|step)-\d"
    rf"|{re.escape(CANARIES)}|{re.escape(MARKS)}"
)
"""Beginnings of names of files that a run has in its corpus, record and checkpoints."""
SAVING = re.compile(r"\.step-\d{8,}\.(tmp|damaged)(\.[0-9a-f]{8}\.removed)?")
"""Folders of checkpoints that an interrupted save has left; the next start removes them."""
RECORDED = re.compile(r"head\.json|(part|sealed)-(\d{8,})-(\d{8,})\.parquet")


TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")
"""Name of a file while it is written, which a process that was killed may have left."""


def is_temporary(name: str, files: Iterable[str]) -> bool:
    """Whether a file is a temporary one of these files."""
    match = TEMPORARY.fullmatch(name)
    return match is not None and match[1] in files


def check_run(findings: Findings, run: RunDirectory, order: dict[str, Any]) -> None:
    """Nothing in the folder of a run has a name like its files, its corpus, record or checkpoints, and is not one.

    Notes and results of the user may be there: nothing reads them.
    """
    used = {*FILES} | ({run.order_file.name} if "ids" in order else set())
    used |= {run.order_notes.name} if order["kind"] == "curriculum" or "canaries" in order else set()
    for path in sorted(run.path.iterdir()):
        name = path.name.lstrip(".")
        is_like_ours = name.startswith((*FILES, run.order_file.name, run.order_notes.name)) or ELSEWHERE.match(name)
        if is_like_ours and path.name not in used and not is_temporary(path.name, used):
            findings.add(f"{path}: is not a file of this run; remove it, or give it another name")


def check_checkpoints(findings: Findings, directory: Path) -> None:
    """Hidden entries next to the checkpoints are folders that an interrupted save has left."""
    for path in sorted(directory.glob(".*")):
        if not (SAVING.fullmatch(path.name) and path.is_dir() and not path.is_symlink()):
            findings.add(f"{path}: is not a checkpoint; remove it")


def check_record(findings: Findings, record: Record, order: Order, steps: int, finished: bool) -> None:
    """Every file of the record is in head.json: programs read all parts, and would count the readings of others, too.

    A run that was killed may have written a part, but not its new head.json. Such a part begins where the record ends,
    and has what the order says; the next start removes it.
    """
    listed = {"head.json", *(each["name"] for each in (*record.parts, *record.sealed_files))}
    for path in sorted(record.directory.iterdir()):
        temporary = TEMPORARY.fullmatch(path.name)
        if path.name in listed or (temporary and RECORDED.fullmatch(temporary[1])):
            continue
        if finished or not _is_unfinished(path, record, order, steps):
            findings.add(f"{path}: not listed in head.json; remove it")


def _is_unfinished(path: Path, record: Record, order: Order, steps: int) -> bool:
    """Whether a file is what a run writes next, after the files that its head.json names."""
    match = RECORDED.fullmatch(path.name)
    if not match or not match[1] or path.is_symlink():
        return False
    import pyarrow.parquet

    first, last = int(match[2]), int(match[3])
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError):
        return False
    if match[1] == "sealed":
        after = max((each["to"] for each in record.sealed_files), default=-1)
        steps_of = table["step"].to_pylist() if list(table.column_names) == list(sealed.COLUMNS) else []
        return after < first <= last <= steps and steps_of[:1] == [first] and steps_of[-1:] == [last]
    if not record.batches <= first < last <= steps or list(table.column_names) != list(COLUMNS):
        return False
    numbers = np.repeat(np.arange(first, last), order.batch_size)
    expected = {"batch_id": numbers, "sample_id": order.batches(first, last).ravel()}
    return all(table[name].to_pylist() == values.tolist() for name, values in expected.items())
