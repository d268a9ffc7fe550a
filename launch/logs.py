"""Print the logs of all ranks in one: ``python -m launch logs RUN [--follow] [--rank K] [--errors] [--attempt N]``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.backends import base as backends
from launch.state import (
    EVALUATION,
    REQUESTS,
    Facts,
    Scheduler,
    attempts_of,
    exit_in_words,
    facts,
    has_begun,
    look,
    open_run,
    state_of,
)
from wellread.cli import new_parser, parse
from wellread.errors import UserError
from wellread.run import RunDirectory

EXAMPLES = """examples:
  python -m launch logs runs/tiny-sample              newest attempt: the first error, the other ranks, rank 0
  python -m launch logs runs/tiny-sample --follow     what is added, through all attempts, until the run ends
  python -m launch logs runs/tiny-sample --rank 3     one rank alone
  python -m launch logs runs/tiny-sample --errors     all ranks' tracebacks in order of time, and what SLURM's jobs said
"""
POLL = 0.3
"""Seconds between two looks for new lines."""
LOOK = 1.0
"""Seconds between two looks at whether the run goes on."""
SIGNALLED = 128
"""Above it, an exit code tells of a signal."""
LAST_LINES = 20
"""How much of a job's own output is shown."""
COLORS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
"""Of ranks 1, 2, …, on a terminal; rank 0 keeps the terminal's own."""


def main(argv: list[str]) -> int:
    """Answer ``launch logs``; return the exit code."""
    parser = new_parser("python -m launch logs", "Print the logs of all ranks in one, the first error first.", EXAMPLES)
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--follow", action="store_true", help="Print what is added, until the run ends or Ctrl-C.")
    parser.add_argument("--rank", type=int, help="This rank alone.")
    parser.add_argument("--errors", action="store_true", help="Only what failed, with tracebacks.")
    parser.add_argument("--attempt", type=int, help="This attempt instead of the newest; with --follow: from it on.")
    arguments = parse(parser, argv)
    run = open_run(arguments.run)
    listed = attempts_of(run)
    number = _choose(run, listed, arguments.attempt)
    _check_rank(run, listed, number, arguments.rank)
    if arguments.errors:
        if arguments.follow:
            raise UserError("--errors --follow: --errors shows what has failed already; leave one of them out")
        _show_errors(run, listed, number, arguments.rank)
    elif arguments.follow:
        _follow(run, number, arguments.rank)
    else:
        _show(run, listed, number, arguments.rank)
    return 0


def _choose(run: RunDirectory, listed: list[dict[str, Any]], attempt: int | None) -> int:
    """Number of the attempt that is meant; 0 when there is none yet."""
    if attempt is not None and not 1 <= attempt <= len(listed):
        available = (
            f"has attempts 1 to {len(listed)}"
            if len(listed) > 1
            else "has attempt 1 alone"
            if listed
            else "has none yet"
        )
        raise UserError(f"--attempt {attempt}: {run.path} {available}")
    return len(listed) if attempt is None else attempt


def _check_rank(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    if rank is None or not number:
        return
    ranks = range(listed[number - 1]["ranks"])
    if rank not in ranks:
        available = f"ranks 0 to {ranks[-1]}" if len(ranks) > 1 else "rank 0 alone"
        raise UserError(f"--rank {rank}: attempt {number} of {run.path} has {available}")


class Tail:
    """Lines that are added to a file, each once, whatever happens to the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = -1, 0

    def lines(self, last: bool = False) -> Iterator[str]:
        """Lines since the last call; one that is not whole yet only when it is the `last` call."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below, whichever way it goes
        except FileNotFoundError:
            return
        with file:
            now = os.fstat(file.fileno())
            if now.st_ino != self._inode or now.st_size < self._offset:  # another file of that name, or cut off
                self._inode, self._offset = now.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not (last or line.endswith(b"\n")):
                    return
                self._offset += len(line)
                yield _overwritten(line.decode(errors="replace"))


def _overwritten(line: str) -> str:
    """A line as a terminal would leave it: progress bars go back to its beginning with each new state."""
    return line.rstrip("\r\n").rpartition("\r")[2]


class AttemptLog:
    """What the ranks of one attempt write."""

    def __init__(self, run: RunDirectory, number: int, rank: int | None) -> None:
        self.number = number
        self._run, self._rank = run, rank
        self._tails: dict[int, Tail] = {}
        self._prefixed = rank is None and attempts_of(run)[number - 1]["ranks"] > 1
        self._error_shown = False

    def show(self, last: bool = False) -> None:
        """Print what is new: rank 0, whose lines tell the story, after the others."""
        for path in self._run.log.glob(f"attempt-{self.number:03d}-rank-*.log"):
            rank = int(path.stem.rpartition("-")[2])
            if self._rank in (None, rank) and rank not in self._tails:
                self._tails[rank] = Tail(path)
        for rank in sorted(self._tails, key=lambda rank: (rank == 0, rank)):
            for line in self._tails[rank].lines(last):
                print(_colored(rank, f"[rank {rank}] {line}") if self._prefixed else line)

    def show_first_error(self) -> None:
        """Print which rank failed first, and why, once; where a signal left no error behind, say so."""
        if self._error_shown:
            return
        errors = _errors(self._run, self.number)
        code = attempts_of(self._run)[self.number - 1].get("exit_code", 0)
        explained = any("signal" in error for error in errors) if code > SIGNALLED else bool(errors)
        silent = code and code not in REQUESTS and not explained
        if silent:  # a rank that a signal ended leaves nothing itself; the others fail because it is gone
            print(_red(f"attempt {self.number} ended with {exit_in_words(code)}, of which no rank has left an error"))
        if errors:
            print(_red(f"rank {errors[0]['rank']} failed first: {errors[0]['error']}"))
        self._error_shown = bool(silent or errors)


def _errors(run: RunDirectory, number: int) -> list[dict[str, Any]]:
    """What the ranks of an attempt failed of, the earliest first; the others often fail because that one is gone."""
    failures = [json.loads(path.read_text()) for path in run.log.glob(f"attempt-{number:03d}-rank-*.error.json")]
    return sorted(failures, key=lambda error: float(error["time"]))


def _show(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    """Print one attempt as it is now, after what a newer job said that made none."""
    if number == len(listed):
        _show_job(run, _job_before_ranks(run, listed))
    if number:
        log = AttemptLog(run, number, rank)
        log.show_first_error()
        log.show(last=True)
    if not number or not any(run.log.glob(f"attempt-{number:03d}-rank-*.log")):
        print(f"{run.path}: {look(run, Scheduler()).in_words}; no rank has written yet", file=sys.stderr)


def _show_errors(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    """Print the tracebacks of an attempt's ranks in order of time, then the last lines of its job."""
    errors = [error for error in _errors(run, number) if rank in (None, error["rank"])]
    for error in errors:
        moment = time.strftime("%H:%M:%S", time.localtime(error["time"]))
        print(_red(f"rank {error['rank']} at {moment}: {error['error']}"))
        if error["trace"]:  # a signal leaves none
            print(error["trace"].rstrip())
    if not errors:
        print(f"no rank of attempt {number} has left an error" if number else f"{run.path} has no attempt yet")
    _show_job(run, listed[number - 1].get("job") if number else None)
    if number == len(listed):
        _show_job(run, _job_before_ranks(run, listed))


def _job_before_ranks(run: RunDirectory, listed: list[dict[str, Any]]) -> str | None:
    """Id of the newest job when it has made no attempt: it waits, prepares, or has died of its setup."""
    training = [job for job in backends.jobs_of(run) if job.kind != EVALUATION]
    return training[-1].id if training and not has_begun(training[-1], listed) else None


def _show_job(run: RunDirectory, job_id: str | None) -> None:
    """Print the last lines of what a job wrote beside its ranks' logs: there it says why these never began."""
    for path in sorted(run.submit.glob(f"{job_id}_*_log.err")) if job_id else ():
        lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
        if lines:
            print(f"--- {path}, last lines")
            print("\n".join(map(_overwritten, lines)))


def _follow(run: RunDirectory, number: int, rank: int | None) -> None:
    """Print what is added, attempt after attempt, until nothing of the run is queued or runs."""
    log = AttemptLog(run, number, rank) if number else None
    if log:
        log.show_first_error()
    looked, state, over = float("-inf"), "running", 0
    while True:
        if time.monotonic() >= looked + LOOK:
            current = facts(run, Scheduler())
            # seen twice where there is a job: one that is queued again is nowhere for a moment
            looked, over = time.monotonic(), 0 if current.active else over + (1 if current.job else 2)
            state = _say(run, current, state)
            log = _advance(run, log, len(current.attempts), rank)
        if log:
            log.show(last=over > 1)
        sys.stdout.flush()
        if over > 1:
            break
        time.sleep(POLL)
    if log:
        log.show_first_error()
    _show_job(run, _job_before_ranks(run, current.attempts))


def _say(run: RunDirectory, current: Facts, before: str) -> str:
    """Tell of a new state, beside the logs; return it."""
    state, reason = state_of(current)
    if state != before:
        sys.stdout.flush()
        print(f"{run.path}: {state}" + f" ({reason})" * bool(reason), file=sys.stderr, flush=True)
    return state


def _advance(run: RunDirectory, log: AttemptLog | None, newest: int, rank: int | None) -> AttemptLog | None:
    """Go on to the newest attempt, by way of those between."""
    while newest > (log.number if log else 0):
        if log:
            log.show(last=True)
            log.show_first_error()
        log = AttemptLog(run, log.number + 1 if log else 1, rank)
        print(f"--- attempt {log.number}")
    return log


def _colored(rank: int, line: str) -> str:
    return f"\x1b[{COLORS[(rank - 1) % len(COLORS)]}m{line}\x1b[0m" if rank and _colors() else line


def _red(text: str) -> str:
    return f"\x1b[31merror:\x1b[0m {text}" if _colors() else f"error: {text}"


def _colors() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
