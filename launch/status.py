"""``wellread status [RUN] [--runs runs] [--json]``: show the state of runs, as defined in launch.state."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from launch import attempts
from launch.backends import base as backends
from launch.state import Scheduler, Status, attempts_of, duration, exit_in_words, look, moment, open_run
from wellread.cli import new_parser, parse
from wellread.errors import UserError
from wellread.escapes import joined, styled, visible
from wellread.run import RunDirectory
from wellread.terminal import console

EXAMPLES = """examples:
  wellread status                        all runs in runs/, the most recently launched first
  wellread status runs/tiny-sample       one run: its attempts, SLURM jobs, first error
  wellread status --json | jq -r '.[] | select(.state == "failed").run'

states:
  finished, running, pending (in SLURM's queue), requeued (pending again, after the job has run), failed (exit code),
  stopped (on request: the same command resumes it), killed (ended without an exit code), prepared (no attempt yet),
  unknown (SLURM gives no answer)
"""
COLORS = {
    "finished": "green",
    "running": "cyan",
    "pending": "yellow",
    "requeued": "yellow",
    "stopped": "magenta",
    "prepared": "dim",
}
"""Colors of states on a terminal; other states are red."""
WIDEST_STATE = 40
DROPPED_FIRST = ("where", "attempts", "rate", "saved", "left", "step")
"""Columns that a narrow terminal does not show, the least important first."""
WIDTH_OF_STATE = 22
"""Columns of the terminal that a state needs at least, with the space before it; longer ones wrap."""
NUMBERS = ("step", "rate", "left", "saved", "attempts")


def main(argv: list[str]) -> int:
    """Run ``wellread status``; return the exit code."""
    parser = new_parser("wellread status", "Show the state of runs.", EXAMPLES)
    parser.add_argument("run", nargs="?", help="Run directory (default: all runs in the folder --runs).")
    parser.add_argument("--runs", default="runs", help="Folder of run directories.")
    parser.add_argument("--json", action="store_true", help="Print a list of objects.")
    arguments = parse(parser, argv)
    scheduler = Scheduler()
    if arguments.run is None:
        statuses = [look(run, scheduler) for run in _runs(Path(arguments.runs))]
        text = _json([asdict(status) for status in statuses]) if arguments.json else _table(statuses, arguments.runs)
    else:
        run = open_run(arguments.run)
        about = details(run, look(run, scheduler), scheduler)
        text = _json([about]) if arguments.json else _page(about)
    if text:
        print(text if arguments.json else visible(text))
    if scheduler.refusal and arguments.run is None and not arguments.json:
        print(scheduler.refusal, file=sys.stderr)
    return 0


def _json(values: list[dict[str, Any]]) -> str:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    return "".join(c if visible(c) == c else json.dumps(c)[1:-1] for c in text)


def _runs(folder: Path) -> list[RunDirectory]:
    """List the runs in a folder, the most recently launched first."""
    if not folder.is_dir():
        raise UserError(f"--runs {folder}: no such folder; give the folder of your runs")
    runs = [RunDirectory(path) for path in folder.iterdir() if path.is_dir()]
    runs = [run for run in runs if _is_run(run)]
    return sorted(runs, key=lambda run: (-_launched(run), run.path))


def _is_run(run: RunDirectory) -> bool:
    """Whether a folder is a run, or one that cannot be read and may be a run."""
    try:
        return run.config_file.is_file() or run.holder() is not None
    except (OSError, UserError):
        return True


def _launched(run: RunDirectory) -> float:
    """Return the time of the last launch, which writes the configuration; infinity for a run that is being prepared."""
    try:
        return run.config_file.stat().st_mtime
    except OSError:
        return float("inf")


def _table(statuses: list[Status], folder: str) -> str:
    """Return all runs as an aligned table; on a terminal, print it in color and return an empty string."""
    if not statuses:
        return f"no runs in {folder}"
    rows = [_cells(status) | {"state": _short(status.in_words)} for status in statuses]
    rows = [{name: visible(text).replace("\n", "\\n") for name, text in row.items()} for row in rows]
    if sys.stdout.isatty():
        _show_table(statuses, rows)
        return ""
    table = [tuple(name.upper() for name in rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def _short(state: str) -> str:
    """Truncate a state with a long reason, as SLURM has some."""
    return state if len(state) <= WIDEST_STATE else f"{state[: WIDEST_STATE - 2]}…)"


def _show_table(statuses: list[Status], rows: list[dict[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    screen = console()
    for name in _columns(rows, screen.width):
        justify: Literal["left", "right"] = "right" if name in NUMBERS else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "state")
    for status, row in zip(statuses, rows, strict=True):
        color = COLORS.get(status.state, "red")
        cells = {column.header: Text(row[str(column.header)]) for column in table.columns}
        cells["state"].stylize(color)
        table.add_row(*cells.values())
    least = max(len(row["run"]) for row in rows) + WIDTH_OF_STATE
    console(width=max(least, screen.width)).print(table)  # the terminal itself wraps lines that are too long


def _columns(rows: list[dict[str, str]], width: int) -> list[str]:
    """Columns of a table that fits into `width`: without the less important ones, so that no run name wraps."""
    names = list(rows[0])
    needed = {name: max(len(name), *(len(row[name]) for row in rows)) + 2 for name in names}
    needed["state"] = min(needed["state"], WIDTH_OF_STATE)
    for name in DROPPED_FIRST:
        if sum(needed[name] for name in names) <= width + 2:
            break
        names.remove(name)
    return names


def _page(about: dict[str, Any]) -> str:
    """Return the details of one run as aligned lines."""
    lines = _lines(about)
    width = max(len(name) for name, _ in lines) + 2
    dim = [2] * (sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    return joined([joined([styled(f"{name:<{width}}", *dim), value]) for name, value in lines], "\n")


def details(run: RunDirectory, status: Status, scheduler: Scheduler) -> dict[str, Any]:
    """Return the status of one run, its attempts, its first error if it failed, and all its SLURM jobs."""
    keys = (
        "attempt",
        "started",
        "ended",
        "exit_code",
        "cluster",
        "job",
        "restart",
        "hosts",
        "ranks",
        "nodes",
        "strategy",
    )
    listed = attempts_of(run)
    error = attempts.first_error(run, len(listed)) if status.state == "failed" else None
    jobs = scheduler.jobs(backends.jobs_of(run))
    return asdict(status) | {
        "first_error": error and {key: error[key] for key in ("rank", "error", "time")},
        "history": [{key: attempt.get(key) for key in keys} for attempt in listed],
        "jobs": [
            entry.job.note | (asdict(entry.now) if entry.now else {"state": None, "reason": scheduler.refusal})
            for entry in jobs
        ],
    }


def _cells(status: Status) -> dict[str, str]:
    """Return the cells of a run in the table, by column."""
    step = "-" if status.step is None else str(status.step)
    return {
        "run": status.run,
        "state": status.in_words,
        "step": f"{step}/{status.steps}" if status.steps else step,
        "rate": f"{status.tokens_per_second:,.0f} tokens/s" if status.tokens_per_second else "-",
        "left": "-" if status.seconds_left is None else duration(status.seconds_left),
        "saved": "-" if status.last_checkpoint is None else str(status.last_checkpoint),
        "attempts": str(status.attempts),
        "where": status.where or "-",
    }


def _lines(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the details of one run: name and value of each line."""
    status = Status(**{field.name: about[field.name] for field in fields(Status)})
    cells = _cells(status)
    if status.state in ("stopped", "failed", "killed"):
        cells["state"] += "; run the same command to resume" + f" from step {cells['saved']}" * (cells["saved"] != "-")
    if error := about["first_error"]:
        cells["first error"] = f"rank {error['rank']}: {error['error']}"
    if status.tokens is not None and status.loss is not None:
        cells["step"] += f", {status.tokens:,} tokens read, loss {status.loss:.4f}"
    if status.seconds_per_step is not None:
        cells["rate"] += f", {status.seconds_per_step:.3g} s/step"
    names = ("run", "state", "first error", "step", "rate", "left", "saved", "where")
    lines = [(name, cells[name]) for name in names if cells.get(name, "-") != "-"]
    running = status.attempts if status.state == "running" else 0
    lines += [(f"attempt {n}", _attempt_line(attempt, n == running)) for n, attempt in enumerate(about["history"], 1)]
    return lines + [(f"job {job['id']}", _job_line(job)) for job in about["jobs"]]


def _attempt_line(attempt: dict[str, Any], running: bool) -> str:
    code = attempt["exit_code"]
    ended = (
        f"to {_clock(attempt['ended'])}, {exit_in_words(code)}"
        if attempt["ended"]
        else "until now"
        if running
        else "without an end"
    )
    parts = [
        f"{_clock(attempt['started'])} {ended}",
        (attempt["cluster"] or "") + f" job {attempt['job']}" * bool(attempt["job"]),
        _several(attempt["ranks"], "rank") + f" on {_several(attempt['nodes'] or 1, 'node')}" * bool(attempt["nodes"]),
        attempt["strategy"],
    ]
    return ", ".join(part for part in parts if part)


def _job_line(job: dict[str, Any]) -> str:
    if job["state"] is None:
        return f"{job['kind']}, submitted {_clock(job['submitted'])}, state unknown: {job['reason']}"
    parts = [job["kind"], f"submitted {_clock(job['submitted'])}", job["state"].lower()]
    parts += [f"exit code {job['exit_code']}"] * bool(job["exit_code"]) + [job["reason"]] * bool(job["reason"])
    parts += [f"on {job['nodes']}"] * bool(job["nodes"]) + [_several(job["restarts"], "restart")] * bool(
        job["restarts"]
    )
    return ", ".join(parts)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _clock(text: str | None) -> str:
    if text is None:  # removed from the manifest
        return "-"
    return moment(text).strftime("%Y-%m-%d %H:%M:%S")
