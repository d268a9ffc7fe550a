"""``wellread logs RUN [--follow] [--rank K] [--errors] [--attempt N]``: print the logs of all ranks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import attempts
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
from wellread.escapes import joined, styled, visible
from wellread.run import RunDirectory

EXAMPLES = """examples:
  wellread logs runs/tiny-sample              newest attempt: first error, other ranks, rank 0
  wellread logs runs/tiny-sample --follow     new lines of all following attempts, until the run ends
  wellread logs runs/tiny-sample --rank 3     only one rank
  wellread logs runs/tiny-sample --errors     tracebacks of all ranks by time, and output of the SLURM job
"""
POLL = 0.3
"""Seconds between two checks for new lines."""
LOOK = 1.0
"""Seconds between two checks whether the run is still active."""
SIGNALLED = 128
"""An exit code above this means that a signal ended the process."""
LAST_LINES = 20
"""Number of lines of a job's output that are shown."""
COLORS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
"""ANSI colors of ranks 1, 2, …, on a terminal; rank 0 has the default color."""


def main(argv: list[str]) -> int:
    """Run ``wellread logs``; return the exit code."""
    parser = new_parser("wellread logs", "Print the logs of all ranks, starting with the first error.", EXAMPLES)
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--follow", action="store_true", help="Print new lines until the run ends or Ctrl-C.")
    parser.add_argument("--rank", type=int, help="Only this rank (default: all ranks).")
    parser.add_argument("--errors", action="store_true", help="Only errors, with tracebacks.")
    parser.add_argument(
        "--attempt", type=int, help="Attempt (default: the newest); with --follow: start with this one."
    )
    arguments = parse(parser, argv)
    run = open_run(arguments.run)
    listed = attempts_of(run)
    number = _choose(run, listed, arguments.attempt)
    _check_rank(run, listed, number, arguments.rank)
    if arguments.errors:
        if arguments.follow:
            raise UserError("--errors --follow: cannot be combined; use only one of them")
        _show_errors(run, listed, number, arguments.rank)
    elif arguments.follow:
        _follow(run, number, arguments.rank)
    else:
        _show(run, listed, number, arguments.rank)
    return 0


def _choose(run: RunDirectory, listed: list[dict[str, Any]], attempt: int | None) -> int:
    """Return the number of the attempt to show; 0 when there is none yet."""
    if attempt is not None and not 1 <= attempt <= len(listed):
        available = (
            f"has attempts 1 to {len(listed)}"
            if len(listed) > 1
            else "has only attempt 1"
            if listed
            else "has no attempt yet"
        )
        raise UserError(f"--attempt {attempt}: {run.path} {available}")
    return len(listed) if attempt is None else attempt


def _check_rank(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    if rank is None or not number:
        return
    ranks = range(listed[number - 1]["ranks"])
    if rank not in ranks:
        available = f"ranks 0 to {ranks[-1]}" if len(ranks) > 1 else "only rank 0"
        raise UserError(f"--rank {rank}: attempt {number} of {run.path} has {available}")


class Tail:
    """Reads the new lines of a file, each once, even when the file is truncated or replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = -1, 0

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yield the lines since the last call; an incomplete line only in the `last` call."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed by the with statement below
        except FileNotFoundError:
            return
        with file:
            now = os.fstat(file.fileno())
            if now.st_ino != self._inode or now.st_size < self._offset:  # the file was replaced or truncated
                self._inode, self._offset = now.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not (last or line.endswith(b"\n")):
                    return
                self._offset += len(line)
                yield visible(_overwritten(line.decode(errors="replace")))


def _overwritten(line: str) -> str:
    """Return a line as a terminal shows it: text after the last carriage return, as progress bars use them."""
    return line.rstrip("\r\n").rpartition("\r")[2]


class AttemptLog:
    """Prints the logs of the ranks of one attempt."""

    def __init__(self, run: RunDirectory, number: int, rank: int | None) -> None:
        self.number = number
        self._run, self._rank = run, rank
        self._tails: dict[int, Tail] = {}
        self._prefixed = rank is None and attempts_of(run)[number - 1]["ranks"] > 1
        self._error_shown = False

    def show(self, last: bool = False) -> None:
        """Print new lines; rank 0 comes last, since its lines show the progress of the run."""
        for path in self._run.log.glob(f"attempt-{self.number:03d}-rank-*.log"):
            rank = int(path.stem.rpartition("-")[2])
            if self._rank in (None, rank) and rank not in self._tails:
                self._tails[rank] = Tail(path)
        for rank in sorted(self._tails, key=lambda rank: (rank == 0, rank)):
            for line in self._tails[rank].lines(last):
                print(_colored(rank, f"[rank {rank}] {line}") if self._prefixed else line)

    def show_first_error(self) -> None:
        """Print, once, which rank failed first and why; also print when a signal ended a rank without an error file."""
        if self._error_shown:
            return
        errors = attempts.errors(self._run, self.number)
        code = attempts_of(self._run)[self.number - 1].get("exit_code", 0)
        explained = any("signal" in error for error in errors) if code > SIGNALLED else bool(errors)
        silent = code and code not in REQUESTS and not explained
        if silent:  # a rank that was ended by a signal writes no error; the other ranks fail because it is gone
            print(
                _red(f"attempt {self.number} ended with {exit_in_words(code)}; no rank has written an error about it")
            )
        if errors:
            print(_red(f"rank {errors[0]['rank']} failed first: {errors[0]['error']}"))
        self._error_shown = bool(silent or errors)


def _show(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    """Print the logs of one attempt, after the output of a newer job that has not started an attempt."""
    if number == len(listed):
        _show_job(run, _job_before_ranks(run, listed))
    if number:
        log = AttemptLog(run, number, rank)
        log.show_first_error()
        log.show(last=True)
    if not number or not any(run.log.glob(f"attempt-{number:03d}-rank-*.log")):
        print(f"{run.path}: {look(run, Scheduler()).in_words}; no rank has written yet", file=sys.stderr)


def _show_errors(run: RunDirectory, listed: list[dict[str, Any]], number: int, rank: int | None) -> None:
    """Print the tracebacks of an attempt's ranks by time, then the last lines of its job."""
    errors = [error for error in attempts.errors(run, number) if rank in (None, error["rank"])]
    for error in errors:
        moment = time.strftime("%H:%M:%S", time.localtime(error["time"]))
        print(_red(f"rank {error['rank']} at {moment}: {error['error']}"))
        if error["trace"]:  # empty when a signal ended the rank
            print(visible(error["trace"].rstrip()))
    if not errors:
        print(f"no rank of attempt {number} has written an error" if number else f"{run.path} has no attempt yet")
    _show_job(run, listed[number - 1].get("job") if number else None)
    if number == len(listed):
        _show_job(run, _job_before_ranks(run, listed))


def _job_before_ranks(run: RunDirectory, listed: list[dict[str, Any]]) -> str | None:
    """Return the id of the newest job if it has not started an attempt: it waits, prepares or failed in its setup."""
    training = [job for job in backends.jobs_of(run) if job.kind != EVALUATION]
    return training[-1].id if training and not has_begun(training[-1], listed) else None


def _show_job(run: RunDirectory, job_id: str | None) -> None:
    """Print the last lines of a job's own log, which shows why its ranks did not start."""
    for path in sorted(run.submit.glob(f"{job_id}_*_log.err")) if job_id else ():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        if lines:
            print(f"--- {path}, last lines")
            print("\n".join(visible(_overwritten(line)) for line in lines))


def _follow(run: RunDirectory, number: int, rank: int | None) -> None:
    """Print new lines, attempt by attempt, until the run is neither queued nor running."""
    log = AttemptLog(run, number, rank) if number else None
    if log:
        log.show_first_error()
    looked, state, over = float("-inf"), "running", 0
    while True:
        if time.monotonic() >= looked + LOOK:
            current = facts(run, Scheduler())
            # With a job, check twice: a job that is being requeued is briefly in no list.
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
    """Print a new state to stderr; return the state."""
    state, reason = state_of(current)
    if state != before:
        sys.stdout.flush()
        print(f"{run.path}: {state}" + f" ({reason})" * bool(reason), file=sys.stderr, flush=True)
    return state


def _advance(run: RunDirectory, log: AttemptLog | None, newest: int, rank: int | None) -> AttemptLog | None:
    """Advance to the newest attempt, printing those in between."""
    while newest > (log.number if log else 0):
        if log:
            log.show(last=True)
            log.show_first_error()
        log = AttemptLog(run, log.number + 1 if log else 1, rank)
        print(f"--- attempt {log.number}")
    return log


def _colored(rank: int, line: str) -> str:
    return styled(line, *[COLORS[(rank - 1) % len(COLORS)]] * bool(rank and _colors()))


def _red(text: str) -> str:
    return joined([styled("error:", *[31] * _colors()), text], " ")


def _colors() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
