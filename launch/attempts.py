"""Attempts of a run: entries in the manifest, one per start of the ranks, and the errors of failed ranks."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread import provenance
from wellread.errors import FAILURE
from wellread.files import read_json, with_checksum, write_json
from wellread.run import RunDirectory
from wellread.streams import print_error

if TYPE_CHECKING:
    from wellread.planning.plan import Plan

ERROR = {
    "time": float, "rank": int, "error": str, "trace": str, "exit_code": int, "signal": int, "shortage": dict,
}  # fmt: skip
"""Shape of a rank's error file."""


def begin(run: RunDirectory, plan: Plan, layout: dict[str, Any], code: Path | None = None) -> int:
    """Add an attempt to the manifest; return its number, which starts at 1.

    Parameters
    ----------
    layout : dict
        Where the ranks run: the host names and, on SLURM, the job id.
    code : Path, optional
        Folder of the code that the ranks run (default: the code that calls this). A snapshot can differ from the
        working tree, which may have changed since.
    """
    manifest = run.manifest()
    number = len(manifest["attempts"]) + 1
    on = plan.machine
    world = {"ranks": on.ranks, "nodes": on.nodes, "ranks_per_node": on.ranks_per_node, "device": on.device}
    about = {"attempt": number, "started": now(), "cluster": on.cluster, "strategy": plan.strategy}
    about |= {"grad_accum_dtype": plan.grad_accum_dtype}
    manifest["attempts"].append(about | world | layout | provenance.describe(code))
    write_json(run.manifest_file, with_checksum(manifest))
    return number


def end(run: RunDirectory, number: int, code: int) -> None:
    """Write the end time and the exit code of an attempt into the manifest."""
    add(run, number, {"ended": now(), "exit_code": code})


def add(run: RunDirectory, number: int, values: dict[str, Any]) -> None:
    """Add values to an attempt in the manifest."""
    manifest = run.manifest()
    manifest["attempts"][number - 1] |= values
    write_json(run.manifest_file, with_checksum(manifest))


def first_error(run: RunDirectory, number: int) -> dict[str, Any] | None:
    """Return the error that most likely caused the other errors of an attempt; None without any error.

    Ranks often fail only because another rank is gone. An error of a rank that was ended by a signal comes first: the
    process that watched the rank writes it, so it is written late. Otherwise the earliest error is returned.
    """
    return min(errors(run, number), key=lambda error: "signal" not in error, default=None)


def exit_code(error: dict[str, Any]) -> int:
    """Return the exit code of the rank that wrote an error file, or for which it was written."""
    return 128 + int(error["signal"]) if "signal" in error else int(error.get("exit_code", FAILURE))


def errors(run: RunDirectory, number: int) -> list[dict[str, Any]]:
    """Return the error files of an attempt's ranks, earliest first."""
    failures = [read_json(path, ERROR) for path in run.log.glob(f"attempt-{number:03d}-rank-*.error.json")]
    return sorted(failures, key=lambda error: float(error["time"]))


def note_error(run: RunDirectory, number: int, rank: int, text: str) -> None:
    """Write an error file for a rank that cannot write its own."""
    _write_error(run, number, {"time": time.time(), "rank": rank, "error": text, "trace": ""})


def note_signal(run: RunDirectory, number: int, rank: int, signal_number: int) -> None:
    """Write an error file for a rank that was ended by signal `signal_number`."""
    text = f"ended by signal {signal_number} ({signal.Signals(signal_number).name})"
    _write_error(run, number, {"time": time.time(), "rank": rank, "error": text, "trace": "", "signal": signal_number})


def _write_error(run: RunDirectory, number: int, error: dict[str, Any]) -> None:
    write_json(_error_file(run, number, error["rank"]), error)


def _error_file(run: RunDirectory, number: int, rank: int) -> Path:
    return run.log / f"attempt-{number:03d}-rank-{rank}.error.json"


def silent_ranks(run: RunDirectory, number: int, ranks: int) -> list[int]:
    """Return the ranks of a failed attempt that left no error file, e.g. on a failed node."""
    return [rank for rank in range(ranks) if not _error_file(run, number, rank).exists()]


def lost_ranks(run: RunDirectory, number: int, ranks: int) -> list[int]:
    """Return the ranks of a failed attempt that a signal ended, or that left no error file."""
    signaled = [error["rank"] for error in errors(run, number) if "signal" in error]
    return sorted([*signaled, *silent_ranks(run, number, ranks)])


def show_first_error(run: RunDirectory, number: int) -> None:
    """Print which rank failed first and why."""
    if first := first_error(run, number):
        print_error(f"rank {first['rank']} failed first: {first['error']} (log: {run.log})")


def now() -> str:
    """Return the current time in the format of manifests."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
