"""Verify a run: recompute what can be recomputed, and compare all its files with each other (docs/trust.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.checkpoint import Checkpoint
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.order.store import open_order
from wellread.record import (
    verify_attempts,
    verify_checkpoints,
    verify_corpus,
    verify_entries,
    verify_record,
    verify_sealed,
    verify_settings,
)
from wellread.record.chain import genesis
from wellread.record.findings import Findings
from wellread.record.reader import Record
from wellread.run import RunDirectory


@dataclass(frozen=True)
class Verified:
    """Result of `examine`: the problems, and what was compared."""

    problems: list[str]
    """One line each, with file and field."""
    batches: int
    readings: int
    checkpoints: int
    head: str


def verify(run: RunDirectory) -> list[str]:
    """Check everything that a run claims to have read.

    Returns
    -------
    list of str
        One line for each problem, with its place; empty when there is none.

    Raises
    ------
    UserError
        When the run has not started yet.
    """
    return examine(run).problems


def examine(run: RunDirectory) -> Verified:
    """Check everything that a run claims to have read.

    It compares the files of a corpus with each other, with its tokenizer and with its hash; each part of the record
    with its hash; each recorded batch with the order and the corpus; measured losses with the sealed samples; the chain
    with the head of the record and of each checkpoint; each checkpoint with its files, the record, the corpus and the
    identity of the run; and config.yaml, plan.json, order.json and the corpus with this identity.

    Raises
    ------
    UserError
        When the run has not started yet.
    """
    _refuse_unstarted(run)
    findings = Findings()
    checkpoints = verify_checkpoints.check_files(findings, run)
    verify_checkpoints.check_configurations(findings, checkpoints)
    corpus = digests = record = None
    manifest = _manifest(findings, run)
    with findings.reading(run.corpus):
        corpus = Corpus.open(run.corpus)
        digests = verify_corpus.check(findings, corpus)
        verify_checkpoints.check_tokenizers(findings, checkpoints, corpus)
    with findings.reading(run.record / "head.json"):
        record = Record.open(run.record)
        _ = record.batches, record.head, [(part["name"], part["from"], part["to"]) for part in record.parts]
    if manifest:
        with findings.reading(run.manifest_file):
            if corpus:
                findings.expect(
                    corpus.path / "corpus.json", "hash", corpus.hash, manifest["identity"]["corpus"], "manifest.json"
                )
            verify_attempts.check(findings, run, manifest["attempts"], record)
            verify_entries.check_run(findings, run, manifest["identity"]["order"])
            verify_settings.check(findings, run, manifest, corpus)
        with findings.reading(run.checkpoints):
            verify_checkpoints.check_identities(findings, run.checkpoints, checkpoints, manifest)
        if record:
            with findings.reading(run.record):
                _check_reading(findings, run, manifest, corpus, record, digests, checkpoints)
    readings = record.batches * manifest["identity"]["batch_size"] if record and manifest else 0
    batches, head = (record.batches, record.head) if record else (0, "")
    return Verified(findings.problems, batches, readings, len(checkpoints), head)


def _refuse_unstarted(run: RunDirectory) -> None:
    """Refuse a run that has not saved step 0 yet: nothing was read, and nothing claims that it was."""
    if any(run.checkpoints.glob("step-*")):
        return
    if not (run.record / "head.json").exists():
        raise UserError(f"{run.record}: no record (head.json is missing); has the run started?")
    try:
        batches, attempts = Record.open(run.record).batches, run.manifest()["attempts"]
        is_new = not batches and all(attempt.get("exit_code") != 0 for attempt in attempts)
    except (UserError, LookupError, TypeError, ValueError, AttributeError):  # damaged, as the checks will say
        return
    if is_new:
        raise UserError(f"{run.path}: nothing to verify yet: the run has not saved step 0")


def _manifest(findings: Findings, run: RunDirectory) -> dict[str, Any] | None:
    """manifest.json; None, with a problem, when a key that the checks need is missing."""
    with findings.reading(run.manifest_file):
        manifest = run.manifest()
        identity = manifest["identity"]
        if (
            type(identity["batch_size"]) is int
            and isinstance(identity["order"]["n"], int)
            and manifest["attempts"] is not None
        ):
            return manifest
        findings.add(f"{run.manifest_file}: damaged (batch_size or order.n is not an integer); restore it from a copy")
    return None


def _check_reading(
    findings: Findings,
    run: RunDirectory,
    manifest: dict[str, Any],
    corpus: Corpus | None,
    record: Record,
    digests: NDArray[np.uint8] | None,
    checkpoints: list[Checkpoint],
) -> None:
    """Compare the record with order, corpus and checkpoints, as far as they can be read."""
    identity = manifest["identity"]
    start = genesis(identity["corpus"], identity["order"])
    readable = verify_record.check_parts(findings, record, start, identity["batch_size"])
    verify_attempts.check_end(findings, run, manifest, record, checkpoints)
    order, finished = open_order(run), verify_attempts.has_finished(manifest["attempts"])
    verify_entries.check_record(findings, record, order, identity["steps"], finished)
    if corpus is None:
        return
    verify_settings.check_order(findings, run, identity, order, corpus)
    with findings.reading(record.directory / "head.json"):
        verify_sealed.check(findings, record, corpus)
    if readable and digests is not None:
        walked = verify_record.walk(
            findings, record, corpus, order, digests, start, [each.step for each in checkpoints]
        )
        verify_checkpoints.check_record(findings, checkpoints, record, walked)
