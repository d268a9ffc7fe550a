"""Attempts of a run: each start of its ranks, written into the manifest, and the first error of each."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread import provenance
from wellread.errors import print_error
from wellread.files import write_json
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from wellread.planning.plan import Plan


def begin(run: RunDirectory, plan: Plan, layout: dict[str, Any], code: Path | None = None) -> int:
    """Note that an attempt begins; return its number, from 1.

    Parameters
    ----------
    layout : dict
        Where its ranks run, e.g. the hosts, and the job's id on SLURM.
    code : Path, optional
        What its ranks run (default: the code that calls this); a tree may have changed since its snapshot was taken.
    """
    manifest = run.manifest()
    number = len(manifest["attempts"]) + 1
    on = plan.machine
    world = {"ranks": on.ranks, "nodes": on.nodes, "ranks_per_node": on.ranks_per_node, "device": on.device}
    about = {"attempt": number, "started": now(), "cluster": on.cluster, "strategy": plan.strategy}
    manifest["attempts"].append(about | world | layout | provenance.describe(code))
    write_json(run.manifest_file, manifest)
    return number


def end(run: RunDirectory, number: int, code: int) -> None:
    """Note how an attempt ended."""
    add(run, number, {"ended": now(), "exit_code": code})


def add(run: RunDirectory, number: int, values: dict[str, Any]) -> None:
    """Write more about an attempt into the manifest."""
    manifest = run.manifest()
    manifest["attempts"][number - 1] |= values
    write_json(run.manifest_file, manifest)


def first_error(run: RunDirectory, number: int) -> dict[str, Any] | None:
    """The error of an attempt's ranks that explains the others, which often fail only because one is gone.

    That is a rank that a signal ended: its last words come late, from whoever watched it. Else it is the earliest.
    """
    return min(errors(run, number), key=lambda error: "signal" not in error, default=None)


def errors(run: RunDirectory, number: int) -> list[dict[str, Any]]:
    """What the ranks of an attempt left when they failed, earliest first."""
    failures = [json.loads(path.read_text()) for path in run.log.glob(f"attempt-{number:03d}-rank-*.error.json")]
    return sorted(failures, key=lambda error: float(error["time"]))


def note_error(run: RunDirectory, number: int, rank: int, text: str) -> None:
    """Leave an error for a rank that can leave none itself."""
    _write_error(run, number, {"time": time.time(), "rank": rank, "error": text, "trace": ""})


def note_signal(run: RunDirectory, number: int, rank: int, signal_number: int) -> None:
    """Leave an error for a rank that signal `sent` ended."""
    text = f"ended by signal {signal_number} ({signal.Signals(signal_number).name})"
    _write_error(run, number, {"time": time.time(), "rank": rank, "error": text, "trace": "", "signal": signal_number})


def _write_error(run: RunDirectory, number: int, error: dict[str, Any]) -> None:
    write_json(run.log / f"attempt-{number:03d}-rank-{error['rank']}.error.json", error)


def lost_ranks(run: RunDirectory, number: int, ranks: int) -> list[int]:
    """Ranks of a failed attempt that a signal ended, or that are gone without a word, as when their node is."""
    lost = []
    for rank in range(ranks):
        path = run.log / f"attempt-{number:03d}-rank-{rank}.error.json"
        if not path.exists() or "signal" in json.loads(path.read_text()):
            lost.append(rank)
    return lost


def show_first_error(run: RunDirectory, number: int) -> None:
    """Say which rank failed first, and why."""
    if first := first_error(run, number):
        print_error(f"rank {first['rank']} failed first: {first['error']} (log: {run.log})")


def now() -> str:
    """This moment, as manifests have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
