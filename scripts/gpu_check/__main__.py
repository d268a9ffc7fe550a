"""Predicted against measured memory on this machine's GPUs, with speed, and the story of pythia-12b at the end.

    python -m scripts.gpu_check [--minutes M] [--only WORDS]… [--json FILE] [--markdown FILE] [--device cpu]

It needs the repository and Python packages, and no network. Each case trains random weights on random tokens for a few
steps, in processes of its own, with the real engines (rank.py); cases come in the order of
what they tell (cases.py). At the end pythia-12b runs out of memory under plain ddp, and trains under the plan.

Per GPU, measured is the most that torch's allocator held, and what lay on the device beside it. Of the host, it is the
largest sum of the ranks' private and shared memory (PSS), or what the machine had less to give while they ran, if that
is more: how page-locked memory is counted is the driver's choice. So nothing else should run meanwhile. Nothing is
saved, so predictions whose peak is in saving or resuming have no error. The table is printed last; each row is in the
file of --json as soon as it is measured. Ctrl-C ends the ranks and prints what there is.
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
from scripts.gpu_check.machine import ROOT, Found, look
from scripts.gpu_check.measure import measure
from scripts.gpu_check.rows import Row, line_of, remarks, table
from wellread.cli import run_program
from wellread.errors import FAILURE, UserError
from wellread.files import write_atomic, write_json

SECONDS_PER_CASE = 300
STORY_SHARE, STORY_SECONDS = 0.4, 480
"""What is kept of the time for the story: this part of it, and never more than so many seconds."""
LEAST_SECONDS = 30
"""Below that, no further case is begun."""
CARRY = """DeepSpeed is missing ({why}): ddp alone is checked.
To carry it to a machine without network, run where there is one:
  pip wheel --no-deps --wheel-dir wheels deepspeed hjson pydantic pydantic-core annotated-types typing-inspection
  (pydantic-core's wheel has to be for the other machine's Python), and there:
  pip install --no-index --find-links wheels deepspeed"""


class Interrupted(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)  # cleaning up must not be interrupted in its turn
    raise Interrupted(number)


@dataclass
class Check:
    """One run of the check."""

    found: Found
    json_file: Path
    markdown_file: Path | None
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def run(self, wanted: list[Case], folder: Path, seconds: float) -> None:
        """Measure the cases, the story at the end, for about so many seconds."""
        end = time.monotonic() + seconds
        kept = min(STORY_SHARE * seconds, STORY_SECONDS) if any(case.story for case in wanted) else 0.0
        for number, case in enumerate(wanted, start=1):
            left = end - time.monotonic()
            limit = left if case.story else min(SECONDS_PER_CASE, left - kept)
            if limit < LEAST_SECONDS and not case.story:
                self.waiting.append(case.name)
                continue
            print(f"{number:3}/{len(wanted)} {case.name:32} ", end="", flush=True)
            row = measure(case, self.found, folder, max(limit, LEAST_SECONDS))
            print(line_of(row) if row else "left out: predicted not to fit", flush=True)
            if row is None:
                self.left_out.append(case.name)
                continue
            self.rows.append(row)
            self.write()

    def write(self) -> None:
        """Put what is known into the files."""
        content = {"found": asdict(self.found), "rows": [asdict(row) for row in self.rows]}
        write_json(self.json_file, content)
        if self.markdown_file:
            write_atomic(self.markdown_file, self.text())

    def text(self) -> str:
        """Remarks, and the table last."""
        lines = remarks(self.rows, self.found, self.left_out, self.waiting)
        return "\n".join([*lines, "", table(self.rows), ""])


def main(argv: list[str]) -> int:
    """Check this machine; 0 when all that was predicted to fit has trained, and where there is no GPU."""
    options = _options(argv)
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    code, check = 0, None
    try:
        with tempfile.TemporaryDirectory(prefix="wellread-gpu-check-") as name:
            found = look(options.device, options.host_mem, Path(name))
            if options.device == "cuda" and not found.gpus:
                print("gpu-check: torch sees no GPU on this machine, so there is nothing to check")
                return 0
            check = Check(found, options.json, options.markdown)
            check.write()
            check.run(_wanted(options, found), Path(name), 60 * options.minutes)
            check.write()
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    finally:
        end_children()
        if check and check.rows:
            print(f"\n\n{check.text()}", end="", flush=True)
    broken = [row for row in check.rows if row.fits and not row.trained and not row.skipped] if check else []
    return code or (FAILURE if broken else 0)


def _wanted(options: argparse.Namespace, found: Found) -> list[Case]:
    """The cases that are asked for and can run, after a line about the machine."""
    machine = found.machine
    gpus = f"{len(found.gpus)} x {found.gpus[0]} of {machine.gpu_mem:.1f} GiB, " if found.gpus else ""
    print(
        f"{gpus}{machine.host_mem:.0f} GiB of host memory, torch {found.torch}, DeepSpeed {found.deepspeed}", flush=True
    )
    if not found.deepspeed:
        print(CARRY.format(why=found.why), flush=True)
    asked = _asked(options)
    return [case for case in asked if found.deepspeed or case.strategy == "ddp" or case.story]


def _asked(options: argparse.Namespace) -> list[Case]:
    return [case for case in cases(options.device) if any(words in case.name for words in options.only or [""])]


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=25, help="time for all of it (default: 25)")
    parser.add_argument("--only", action="append", help="cases with these words in their names; may be repeated")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same on tiny models")
    parser.add_argument("--host_mem", type=float, help="GiB of host memory, instead of what the machine says")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "runs" / "gpu-check.json", help="rows (default: runs/gpu-check.json)"
    )
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g}: must be above 0")
    if options.host_mem is not None and not options.host_mem > 0:
        raise UserError(f"--host_mem {options.host_mem:g}: must be above 0 GiB")
    if not _asked(options):
        raise UserError(f"--only {' '.join(options.only)}: no case is named so; try pythia-12b, zero3 or story")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    run_program(main)
