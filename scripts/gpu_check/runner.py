"""Run the checks in their order within the time, and write each row as soon as it is known."""

from __future__ import annotations

import importlib.util
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scripts.gpu_check.checks import Check
from scripts.gpu_check.machine import Inventory
from scripts.gpu_check.measure import measure
from scripts.gpu_check.real_runs import RUNS, Place
from scripts.gpu_check.results import Result, text
from scripts.gpu_check.results import table as table_of_results
from scripts.gpu_check.rows import Row, line_of, remarks, table
from scripts.gpu_check.synthetic import machine_of, unsupported
from scripts.gpu_check.workers import Workers, out_folder
from wellread.files import write_atomic, write_json

LEAST_SECONDS = 15
"""If less time remains, no other check is started."""
STORY_SHARE, STORY_SECONDS = 0.4, 480
"""Time reserved for the story cases: this share of the total, but at most this many seconds."""
MOST_LANES, CORES_OF_A_LANE = 4, 3
"""Checks that measure no time run at the same time, at most so many, if each has so many cores."""
SLOWER_ON_A_CPU = 5
"""Factor of the time limits of single checks on a CPU."""
LATE = "timed out"
"""First words of the reason of a row that did not end in time."""
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "torchao", "triton", "numpy")


@dataclass
class Runner:
    """One execution of the checks."""

    inventory: Inventory
    folder: Path
    """For temporary files."""
    json_file: Path
    markdown_file: Path | None
    end: float
    """When it must be over, by the monotonic clock."""
    rows: list[Row | Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Cases that are predicted not to fit."""
    waiting: list[str] = field(default_factory=list)
    """Checks for which no time was left."""
    stopped: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def device(self) -> str:
        """cuda or cpu."""
        return self.inventory.machine.device

    def run(self, selected: list[Check], workers: Workers) -> None:
        """Run the checks; neighbors that measure no time run at the same time."""
        total = self.end - time.monotonic()
        has_story = any(check.case and check.case.story for check in selected)
        reserved = min(STORY_SHARE * total, STORY_SECONDS) if has_story else 0.0
        for parallel, group in groupby(selected, key=lambda check: check.parallel):
            if not parallel:
                for check in group:
                    self._start(check, workers, reserved)
                continue
            waiting = queue.SimpleQueue[Check]()
            for check in group:
                waiting.put(check)
            lanes = max(1, min(MOST_LANES, len(os.sched_getaffinity(0)) // CORES_OF_A_LANE))
            threads = [threading.Thread(target=self._lane, args=(waiting, workers), daemon=True) for _ in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            workers.retire(self.device)

    def _lane(self, waiting: queue.SimpleQueue[Check], workers: Workers) -> None:
        """Run checks until none waits."""
        while True:
            try:
                check = waiting.get_nowait()
            except queue.Empty:
                return
            self._start(check, workers, 0.0)

    def _start(self, check: Check, workers: Workers, reserved: float) -> None:
        """Run a check; an error of this program is the reason of its row, so that the others still run."""
        try:
            self._run(check, workers, reserved)
        except Exception as error:
            trace = traceback.format_exc()
            why = f"{type(error).__name__}: {error}"
            self.add(Result(check.name, check.section, trained=False, why=why, facts={"trace": trace}))

    def _run(self, check: Check, workers: Workers, reserved: float) -> None:
        story = bool(check.case and check.case.story)
        longest = check.seconds if self.device == "cuda" else SLOWER_ON_A_CPU * check.seconds
        limit = min(longest, self.end - time.monotonic() - (0 if story else reserved))
        if limit < LEAST_SECONDS:
            with self._lock:
                self.waiting.append(check.name)
            return
        missing = [f"{name} is not installed" for name in check.needs if not self._has(name)]
        names = (
            unsupported(check.task.get("recipe", "finetune"), check.task["settings"])
            if "settings" in check.task
            else []
        )
        missing += [f"this version has no setting {name}" for name in names if check.job not in RUNS]
        missing += ["there is no GPU"] * (check.only_gpu and self.device == "cpu")
        if missing:
            self.add(Result(check.name, check.section, why=", and ".join(missing)))
            return
        began = time.monotonic()
        if check.case:
            workers.retire(self.device, remaining=0)
            row = measure(check.case, self.inventory, self.folder, limit)
            if row is None:
                self.left_out.append(check.name)
                print(f"{check.name:44} skipped: predicted not to fit", flush=True)
                return
            row.took = time.monotonic() - began
            if limit < longest and row.outcome.startswith(LATE):
                row.outcome = f"not run: the time ran out, {row.outcome}"
            self.add(row)
            return
        for values in self._values(check, workers, limit):
            result = Result.of(check.name, check.section, values)
            if result.took is None:
                result.took = time.monotonic() - began
            if limit < longest and (result.why or "").startswith(LATE):
                result.trained, result.why = None, f"the time ran out, {result.why}"
            if check.parallel:  # other processes ran at the same time
                result.tokens_per_second = result.mfu = result.gib_predicted = result.gib_measured = None
            self._compare(result, check)
            self.add(result)

    def _has(self, package: str) -> bool:
        return bool(self.inventory.deepspeed) if package == "deepspeed" else bool(importlib.util.find_spec(package))

    def _values(self, check: Check, workers: Workers, limit: float) -> Iterator[dict[str, Any]]:
        """The keys of the rows of a check, as they come."""
        if check.job in RUNS:
            yield from RUNS[check.job](
                check.task, Place(self.folder / check.name.replace("/", " "), self.device, limit)
            )
            return
        if check.compared_on_cpu:
            yield self._against_cpu(check, workers, limit)
            return
        yield from workers.run(self.device, self._task(check, self.device), limit)

    def _task(self, check: Check, device: str) -> dict[str, Any]:
        task = {"job": check.job, **check.task}
        if "settings" in task:
            machine = self.inventory.machine
            task["machine"] = machine_of(device, machine.gpu_mem if device == "cuda" else None, machine.host_mem)
        return task

    def _against_cpu(self, check: Check, workers: Workers, limit: float) -> dict[str, Any]:
        """The row of a check and its comparison with the plain settings on a CPU."""
        began, reference = time.monotonic(), list[dict[str, Any]]()
        task = self._task(check, "cpu")
        task["settings"] = task["settings"] | check.plain
        thread = threading.Thread(target=lambda: reference.extend(workers.run("cpu", task, limit)), daemon=True)
        thread.start()
        if self.device == "cpu":  # in the same worker
            thread.join()
        remaining = max(1.0, limit - (time.monotonic() - began))
        row = list(workers.run(self.device, self._task(check, self.device), remaining))[-1]
        thread.join()
        sides = {"on the CPU: ": reference[-1], f"on {self.device}: ": row}
        for side, values in sides.items():
            if not values["trained"]:
                why = str(values.get("why"))
                return {"trained": False, "why": why if why.startswith(LATE) else f"{side}{why}"}
        return equal(row, reference[-1], check.tolerance)

    def _compare(self, result: Result, check: Check) -> None:
        """Add whether the losses are those of the row that must have the same."""
        other = next((row for row in self.rows if isinstance(row, Result) and row.name == check.same_losses_as), None)
        losses, expected = result.facts.get("losses"), other.facts.get("losses") if other else None
        if losses and expected:
            difference = relative(losses, expected)
            result.facts |= {"losses_equal": difference <= check.tolerance, "loss_difference": difference}
        if other and other.tokens_per_second and result.tokens_per_second:
            result.facts["speed_ratio"] = result.tokens_per_second / other.tokens_per_second

    def add(self, row: Row | Result) -> None:
        """Print a row, and write it to the files."""
        with self._lock:
            if self.stopped:
                return
            print(f"{row.name:44} {row.line if isinstance(row, Result) else line_of(row)}", flush=True)
            self.rows.append(row)
            self.write()

    def write(self) -> None:
        """Write the rows so far to all files."""
        with self._lock:
            rows = [row.as_dict() for row in self.rows]
            content = {"found": asdict(self.inventory), "rows": rows, "waiting": self.waiting}
            out = out_folder()
            for file in (self.json_file, *([out / "gpu-check.json"] if out else [])):
                write_json(file, content)
            for file in (
                *([self.markdown_file] if self.markdown_file else []),
                *([out / "gpu-check.md"] if out else []),
            ):
                write_atomic(file, self.text())

    def text(self) -> str:
        """All tables with their remarks."""
        results = [row for row in self.rows if isinstance(row, Result)]
        lines = [f"{title(self.inventory)}", ""]
        for section, rows in groupby(sorted(results, key=lambda row: first_of(results, row.section)), section_of):
            lines += [f"**{section}**", "", table_of_results(list(rows)), ""]
        cases = [row for row in self.rows if isinstance(row, Row)]
        if cases:
            lines += ["**memory**", "", *remarks(cases, self.inventory, self.left_out, []), "", table(cases), ""]
        if self.waiting:
            lines += [f"Skipped, because the time ran out (--minutes): {', '.join(self.waiting)}.", ""]
        return "\n".join(lines)


def first_of(results: list[Result], section: str) -> int:
    """Position of the first row of a section."""
    return next(number for number, row in enumerate(results) if row.section == section)


def section_of(row: Result) -> str:
    """For grouping."""
    return row.section


def title(inventory: Inventory) -> str:
    """The hardware and the packages, one line."""
    machine, gpus = inventory.machine, inventory.gpus
    models = f"{len(gpus)} x {gpus[0]} of {machine.gpu_mem:.1f} GiB, " if gpus else ""
    packages = f"torch {inventory.torch}, DeepSpeed {inventory.deepspeed}"
    return f"{models}{machine.host_mem:.0f} GiB of host memory, {packages}"


def machine_row(inventory: Inventory) -> Result:
    """The row of the machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    facts = {
        "gpus": inventory.gpus,
        "gpu_gib": inventory.machine.gpu_mem,
        "host_gib": inventory.machine.host_mem,
        "cores": len(os.sched_getaffinity(0)),
        "packages": text([f"{name} {version}" for name, version in versions.items()]),
    }
    return Result("machine", "machine", trained=True, facts=facts)


# --- comparisons -----------------------------------------------------------------------------------------------------


def relative(losses: list[float], expected: list[float]) -> float:
    """Largest relative difference of two lists, over the length of the shorter one."""
    length = min(len(losses), len(expected))
    a, b = np.array(losses[:length]), np.array(expected[:length])
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-9)))


def equal(row: dict[str, Any], reference: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The row of a comparison: losses of every sample, gradient norms, and digests of what was read."""
    samples, expected = (np.concatenate(values["sample_losses"]).tolist() for values in (row, reference))
    length = min(len(samples), len(expected))
    facts = {
        "loss_difference": relative(samples, expected),
        "first_step_difference": relative(row["sample_losses"][0], reference["sample_losses"][0]),
        "norm_difference": relative(row["norms"], reference["norms"]),
        "same_digests": row["digests"][:length] == reference["digests"][:length],
        "compared_samples": length,
        "losses": row["losses"],
        "losses_cpu": text(reference["losses"]),
    }
    why = None
    if not facts["same_digests"]:
        why = "other tokens were recorded"
    elif not facts["loss_difference"] <= tolerance:
        why = f"losses differ by {facts['loss_difference']:.1e}, more than {tolerance:g}"
    return {"trained": why is None, "why": why, "equal": why is None, **facts}
