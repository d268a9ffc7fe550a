"""Verify the attempts in manifest.json: each has its keys, and a run that has ended has saved its last step."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from wellread.checkpoint import Checkpoint, name_of
from wellread.planning.fallback import Failure, Shortage
from wellread.record.findings import Findings
from wellread.record.reader import Record
from wellread.run import ATTEMPT, RunDirectory
from wellread.shapes import unknown_keys

KEYS = ATTEMPT | {
    "code": dict.fromkeys(("commit", "dirty", "diff", "diff_sha256", "untracked"), object),
    **dict.fromkeys(("python", "platform", "gpus", "gpu_driver"), object),
    "packages": {...: object},
    "out_of_memory": {each.name: object for each in fields(Failure)}
    | {"shortage": {each.name: object for each in fields(Shortage)}},
}
"""All keys of an attempt, with those of its objects."""
ALWAYS = (
    "attempt", "started", "cluster", "strategy", "ranks", "nodes", "ranks_per_node", "device", "hosts", "host",
    "python", "platform", "packages", "code",
)  # fmt: skip
"""Keys of every attempt, whichever version wrote it."""


def check(findings: Findings, run: RunDirectory, attempts: list[dict[str, Any]], record: Record | None) -> None:
    """Check the numbers and keys of all attempts, and that somebody has written the record."""
    place = run.manifest_file
    numbers = [each.get("attempt") for each in attempts]
    findings.expect(place, "attempts", numbers, list(range(1, len(numbers) + 1)))
    if not attempts and ((record and record.batches) or any(run.checkpoints.glob("step-*"))):
        findings.add(f"{place}: attempts: is empty, but the run has a record or checkpoints; restore it from a copy")
    for i, each in enumerate(attempts):
        missing = [key for key in ALWAYS if key not in each]
        missing += [key for key in ("ended", "exit_code") if key not in each and {"ended", "exit_code"} & each.keys()]
        findings.add(*(f"{place}: attempts[{i}].{key} is missing; restore it from a copy" for key in missing))
        unknown = unknown_keys(each, KEYS, f"attempts[{i}]")
        findings.add(*(f"{place}: {key}: is not a key of this file" for key in unknown))
        if {"ranks", "nodes", "ranks_per_node"} <= each.keys():
            product = each["nodes"] * each["ranks_per_node"]
            findings.expect(place, f"ranks of attempt {i + 1}", each["ranks"], product)


def has_finished(attempts: list[dict[str, Any]]) -> bool:
    """Whether the last attempt has ended without an error, after all steps: SLURM's also end without one before."""
    return any(each.get("cluster") == "local" and each.get("exit_code") == 0 for each in attempts[-1:])


def check_end(
    findings: Findings, run: RunDirectory, manifest: dict[str, Any], record: Record, checkpoints: list[Checkpoint]
) -> None:
    """A run never reads more than its steps; when it ends without an error, it has read all of them, and saved."""
    steps = manifest["identity"]["steps"]
    if record.batches > steps:
        findings.add(f"{record.directory / 'head.json'}: step: {record.batches}, the run has only {steps} steps")
    if not has_finished(manifest["attempts"]):
        return
    if record.batches < steps:
        findings.add(
            f"{run.manifest_file}: the last attempt has finished, but the record ends at {record.batches} of {steps}"
        )
    if steps not in (each.step for each in checkpoints):
        findings.add(f"{run.checkpoints / name_of(steps)} is missing; the last attempt has finished, and saved it")
