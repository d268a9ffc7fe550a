"""Check wellread on this machine's GPUs: that it is correct, how fast it is, and how much memory it needs.

    python -m scripts.gpu_check [--minutes M] [--full] [--only WORDS]… [--json FILE] [--markdown FILE] [--device cpu]

It needs the repository and Python packages, but no network (docs/gpu.md). The models have random weights in the shapes
of published ones. The most informative rows come first (checks.py): ceilings of the device, a model of 1.4B through the
real training loop, losses compared with those of a CPU, waits of the host, runs that are stopped and resumed, Hugging
Face's Trainer on the same batches, predicted and measured memory of the strategies, adapters, small models. Each row
has its time limit and runs in separate processes; running out of memory is a result. --full adds all sizes of Pythia
under all strategies, and a story: pythia-12b runs out of memory under plain ddp, and trains with the plan.

Measured GPU memory is the peak that torch's allocator reserved, plus memory on the device outside the allocator.
Measured host memory is the largest sum of the ranks' private and shared memory (PSS), or the decrease of the machine's
available memory if that is larger, because it depends on the driver how pinned memory is counted. No other programs
should run during the check. Nothing is saved, so a prediction with its peak in saving or resuming has no error. The
tables are printed at the end; each row is written to the files as soon as it is measured. Ctrl-C ends all processes
and prints the tables so far.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import types
from pathlib import Path
from typing import NoReturn

from launch.backends.elastic import STOP_SIGNALS, end_children
from scripts.gpu_check.checks import Check, checks
from scripts.gpu_check.machine import ROOT, Inventory, look
from scripts.gpu_check.runner import Runner, machine_row, title
from scripts.gpu_check.workers import Workers
from wellread.cli import run_program
from wellread.errors import FAILURE, UserError

CARRY = """DeepSpeed is missing ({why}), so only ddp is checked; docs/gpu.md says how to copy it to a machine without
network."""


class Interrupted(BaseException):
    """A signal asks this program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)  # the cleanup must not be interrupted
    raise Interrupted(number)


def main(argv: list[str]) -> int:
    """Check this machine; return 0 if nothing that was started failed, or if there is no GPU."""
    end = time.monotonic()
    options = _options(argv)
    end += 60 * options.minutes
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    code, runner = 0, None
    try:
        with tempfile.TemporaryDirectory(prefix="wellread-gpu-check-", ignore_cleanup_errors=True) as name:
            selected, workers = _selected(options), Workers(Path(name))
            if any(check.job != "memory" for check in selected):
                workers.prepare(options.device)  # it starts while this process looks at the machine
            inventory = look(options.device, options.host_mem, Path(name))
            if options.device == "cuda" and not inventory.gpus:
                print("gpu-check: torch finds no GPU on this machine, so there is nothing to check")
                return 0
            runner = Runner(inventory, Path(name), options.json, options.markdown, end)
            _print_machine(inventory)
            if not options.only:
                runner.add(machine_row(inventory))
            runner.write()
            runner.run([check for check in selected if _can_run(check, inventory)], workers)
            runner.write()
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    finally:
        if runner:
            runner.stopped = True
        end_children()
        if runner and runner.rows:
            print(f"\n\n{runner.text()}", end="", flush=True)
    return code or (FAILURE if runner and any(row.failed for row in runner.rows) else 0)


def _print_machine(inventory: Inventory) -> None:
    print(title(inventory), flush=True)
    if not inventory.deepspeed:
        print(CARRY.format(why=inventory.why), flush=True)


def _can_run(check: Check, inventory: Inventory) -> bool:
    """Without DeepSpeed, cases of its strategies are left out."""
    return bool(inventory.deepspeed or not check.case or check.case.strategy == "ddp" or check.case.story)


def _selected(options: argparse.Namespace) -> list[Check]:
    every = checks(options.device)
    if options.only:
        return [check for check in every if any(words in check.name for words in options.only)]
    return [check for check in every if options.full or not check.full]


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=25, help="time limit in minutes (default: 25)")
    parser.add_argument("--full", action="store_true", help="also all sizes and strategies, and the story")
    parser.add_argument("--only", action="append", help="run checks with WORDS in their names; can be repeated")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same with tiny models")
    parser.add_argument("--host_mem", type=float, help="assume this many GiB of host memory (default: measured)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "runs" / "gpu-check.json", help="rows (default: runs/gpu-check.json)"
    )
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g}: must be above 0")
    if options.host_mem is not None and not options.host_mem > 0:
        raise UserError(f"--host_mem {options.host_mem:g}: must be above 0 GiB")
    if not _selected(options):
        raise UserError(f"--only {' '.join(options.only)}: no check has such a name; try 1.4B, zero3 or story")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    run_program(main)
