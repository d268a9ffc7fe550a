"""Compare predicted and measured memory on this machine's GPUs, and measure speed.

    python -m scripts.gpu_check [--minutes M] [--only WORDS]… [--json FILE] [--markdown FILE] [--device cpu]

It needs the repository and Python packages, but no network. Each case trains random weights on random tokens for a few
steps, in separate processes, with the real engines (rank.py). The most informative cases come first (cases.py). The two
story cases come last: pythia-12b runs out of memory under plain ddp, and trains with the plan.

Measured GPU memory is the peak that torch's allocator reserved, plus memory on the device outside the allocator.
Measured host memory is the largest sum of the ranks' private and shared memory (PSS), or the decrease of the machine's
available memory if that is larger, because it depends on the driver how pinned memory is counted. No other programs
should run during the check. Nothing is saved, so a prediction with its peak in saving or resuming has no error. The
table is printed at the end; each row is written to the file of --json as soon as it is measured. Ctrl-C ends the ranks
and prints the table so far.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import types
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from launch.backends.elastic import STOP_SIGNALS, end_children
from scripts.gpu_check.cases import Case, cases
from scripts.gpu_check.machine import ROOT, Inventory, look
from scripts.gpu_check.measure import measure
from scripts.gpu_check.rows import Row, line_of, remarks, table
from wellread.cli import run_program
from wellread.errors import FAILURE, UserError
from wellread.files import write_atomic, write_json

SECONDS_PER_CASE = 300
STORY_SHARE, STORY_SECONDS = 0.4, 480
"""Time reserved for the story cases: this share of the total, but at most this many seconds."""
LEAST_SECONDS = 30
"""If less time remains, no other case is started."""
CARRY = """DeepSpeed is missing ({why}), so only ddp is checked.
To copy it to a machine without network, run on a machine with network:
  pip wheel --no-deps --wheel-dir wheels deepspeed hjson pydantic pydantic-core annotated-types typing-inspection
  (pydantic-core's wheel must fit the other machine's Python). Then copy the folder wheels and run on the other machine:
  pip install --no-index --find-links wheels deepspeed"""


class Interrupted(BaseException):
    """A signal asks this program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)  # the cleanup must not be interrupted
    raise Interrupted(number)


@dataclass
class Check:
    """One execution of the check."""

    inventory: Inventory
    json_file: Path
    markdown_file: Path | None
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def run(self, selected: list[Case], folder: Path, seconds: float) -> None:
        """Measure the cases for about `seconds`; the story cases come last."""
        end = time.monotonic() + seconds
        reserved = min(STORY_SHARE * seconds, STORY_SECONDS) if any(case.story for case in selected) else 0.0
        for number, case in enumerate(selected, start=1):
            remaining = end - time.monotonic()
            limit = remaining if case.story else min(SECONDS_PER_CASE, remaining - reserved)
            if limit < LEAST_SECONDS and not case.story:
                self.waiting.append(case.name)
                continue
            print(f"{number:3}/{len(selected)} {case.name:32} ", end="", flush=True)
            row = measure(case, self.inventory, folder, max(limit, LEAST_SECONDS))
            print(line_of(row) if row else "skipped: predicted not to fit", flush=True)
            if row is None:
                self.left_out.append(case.name)
                continue
            self.rows.append(row)
            self.write()

    def write(self) -> None:
        """Write the rows measured so far to the files."""
        content = {"found": asdict(self.inventory), "rows": [asdict(row) for row in self.rows]}
        write_json(self.json_file, content)
        if self.markdown_file:
            write_atomic(self.markdown_file, self.text())

    def text(self) -> str:
        """Remarks, followed by the table."""
        lines = remarks(self.rows, self.inventory, self.left_out, self.waiting)
        return "\n".join([*lines, "", table(self.rows), ""])


def main(argv: list[str]) -> int:
    """Check this machine; return 0 if all cases that were predicted to fit have trained, or if there is no GPU."""
    options = _options(argv)
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    code, check = 0, None
    try:
        with tempfile.TemporaryDirectory(prefix="wellread-gpu-check-") as name:
            inventory = look(options.device, options.host_mem, Path(name))
            if options.device == "cuda" and not inventory.gpus:
                print("gpu-check: torch finds no GPU on this machine, so there is nothing to check")
                return 0
            check = Check(inventory, options.json, options.markdown)
            check.write()
            check.run(_runnable(options, inventory), Path(name), 60 * options.minutes)
            check.write()
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    finally:
        end_children()
        if check and check.rows:
            print(f"\n\n{check.text()}", end="", flush=True)
    broken = [row for row in check.rows if row.fits and not row.trained and not row.skipped] if check else []
    return code or (FAILURE if broken else 0)


def _runnable(options: argparse.Namespace, inventory: Inventory) -> list[Case]:
    """Print a line about the machine; return the selected cases that can run on it."""
    machine, gpus = inventory.machine, inventory.gpus
    models = f"{len(gpus)} x {gpus[0]} of {machine.gpu_mem:.1f} GiB, " if gpus else ""
    packages = f"torch {inventory.torch}, DeepSpeed {inventory.deepspeed}"
    print(f"{models}{machine.host_mem:.0f} GiB of host memory, {packages}", flush=True)
    if not inventory.deepspeed:
        print(CARRY.format(why=inventory.why), flush=True)
    return [case for case in _selected(options) if inventory.deepspeed or case.strategy == "ddp" or case.story]


def _selected(options: argparse.Namespace) -> list[Case]:
    return [case for case in cases(options.device) if any(words in case.name for words in options.only or [""])]


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=25, help="time limit in minutes (default: 25)")
    parser.add_argument("--only", action="append", help="run cases with WORDS in their names; can be repeated")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same with tiny models")
    parser.add_argument("--host_mem", type=float, help="assume this many GiB of host memory (default: measured)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "runs" / "gpu-check.json", help="rows (default: runs/gpu-check.json)"
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g}: must be above 0")
    if options.host_mem is not None and not options.host_mem > 0:
        raise UserError(f"--host_mem {options.host_mem:g}: must be above 0 GiB")
    if not _selected(options):
        raise UserError(f"--only {' '.join(options.only)}: no case has such a name; try pythia-12b, zero3 or story")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    run_program(main)
