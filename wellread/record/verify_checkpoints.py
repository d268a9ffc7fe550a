"""Verify checkpoints: their files, and each field of their manifests, against record, corpus and identity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wellread.checkpoint import MANIFEST, SHAPE, Checkpoint, list_checkpoints, name_of, read_checkpoint
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import FILES
from wellread.files import read_json, sha256_file
from wellread.record import verify_entries
from wellread.record.findings import Findings
from wellread.record.reader import Record
from wellread.record.verify_record import Walked
from wellread.run import RunDirectory

MADE_BY = ("strategy", "ranks", "grad_accum_dtype")
"""Settings of an attempt that each of its checkpoints states; older versions do not state the last."""
CONFIGURATIONS = ("config.json", "generation_config.json", "adapter_config.json")
"""Files of a model that do not change while it is trained."""
LIBRARY = "transformers_version"
"""Key of a configuration: the version that has written it."""


def check_files(findings: Findings, run: RunDirectory) -> list[Checkpoint]:
    """Compare the files of every checkpoint with its manifest; return the checkpoints that can be read."""
    _check_names(findings, run.checkpoints)
    checkpoints = list_checkpoints(run.checkpoints)
    for checkpoint in checkpoints:
        with findings.reading(checkpoint.path / MANIFEST):
            damage = checkpoint.damage()
            if damage:  # a run that is training may have deleted a state meanwhile
                current = {each.path: each for each in list_checkpoints(run.checkpoints)}.get(checkpoint.path)
                damage = current.damage() if current else damage
            if damage:
                findings.add(damage)
    return checkpoints


def _check_names(findings: Findings, directory: Path) -> None:
    """Every entry is a checkpoint whose manifest can be read and is of the step in its name, or being written."""
    verify_entries.check_checkpoints(findings, directory)
    for path in sorted(each for each in directory.glob("*") if not each.name.startswith(".")):
        if path.name == "latest_universal":  # DeepSpeed's converter wrote it in runs of earlier versions
            continue
        if not path.name.startswith("step-"):
            findings.add(f"{path}: is not a checkpoint; remove it")
            continue
        with findings.reading(path / MANIFEST):
            step = read_checkpoint(path).step
            findings.expect(path / MANIFEST, "step", name_of(step), path.name, "the name of its folder")


def check_tokenizers(findings: Findings, checkpoints: list[Checkpoint], corpus: Corpus) -> None:
    """Every checkpoint has the tokenizer of the corpus."""
    expected = {name: sha256_file(corpus.tokenizer / name) for name in FILES if (corpus.tokenizer / name).is_file()}
    for checkpoint in checkpoints:
        for name, sha256 in expected.items():
            with findings.reading(checkpoint.path / MANIFEST):
                listed = checkpoint.manifest["files"].get(f"model/{name}", {}).get("sha256")
                findings.expect(checkpoint.path / MANIFEST, f"files: model/{name}", listed, sha256, "the corpus")


def check_identities(
    findings: Findings, directory: Path, checkpoints: list[Checkpoint], manifest: dict[str, Any]
) -> None:
    """Fields that every checkpoint shares with the manifest of the run, and the batches between checkpoints."""
    identity, saved = manifest["identity"], 0
    if not checkpoints or checkpoints[0].step != 0:
        findings.add(f"{directory / name_of(0)} is missing; every run saves it before it reads")
    attempts = {tuple(each.get(name) for name in MADE_BY) for each in manifest["attempts"]}
    for checkpoint in checkpoints:
        place, values = checkpoint.path / MANIFEST, checkpoint.manifest
        with findings.reading(place):
            findings.expect_keys(place, values, SHAPE)
            expected = {"version": 1, "corpus": identity["corpus"], "dtype": identity["dtype"]}
            findings.expect_all(place, {name: (values.get(name), value) for name, value in expected.items()})
            compare_identity(findings, place, values["identity"], identity)
            findings.expect(place, "record.batches", list(checkpoint.batches), [saved, checkpoint.step])
            made_by = tuple(values.get(name) for name in MADE_BY)
            if made_by not in attempts:
                findings.add(f"{place}: {', '.join(MADE_BY)}: {made_by}, but no attempt in manifest.json has them")
            _check_kind(findings, checkpoint, "lora" in identity)
            loss = values.get("holdout_loss")
            if loss is not None and (not isinstance(loss, float) or math.isnan(loss) or loss < 0):
                findings.add(f"{place}: holdout_loss: {loss}, expected a number of at least 0, or null")
        saved = checkpoint.step


def check_configurations(findings: Findings, checkpoints: list[Checkpoint]) -> None:
    """The model has the same configuration in every checkpoint: another one would change all its scores.

    A run that continues with another version of transformers may write further keys, which are then not compared.
    """
    for name in CONFIGURATIONS:
        paths = [each.model / name for each in checkpoints]
        if not any(path.is_file() for path in paths):
            continue
        first: dict[str, Any] | None = None
        for path in paths:
            with findings.reading(path):
                values = read_json(path, dict)
                first = values if first is None else first
                keys = values.keys() | first.keys()
                if values.get(LIBRARY) != first.get(LIBRARY):
                    keys = values.keys() & first.keys()
                for key in sorted(keys - {LIBRARY}):
                    of_first = f"{name_of(checkpoints[0].step)}/model/{name}"
                    findings.expect(path, key, values.get(key), first.get(key), of_first)


def _check_kind(findings: Findings, checkpoint: Checkpoint, lora: bool) -> None:
    """A LoRA run saves adapters only, every other run complete models only."""
    names = {name.removeprefix("model/") for name in checkpoint.manifest["files"]}
    place = f"{checkpoint.path / MANIFEST}: files"
    settings = "adapter_config.json" if lora else "config.json"
    if settings not in names:
        findings.add(f"{place}: model/{settings} is missing")
    foreign = sorted(
        name for name in names if "/" not in name and name.startswith("adapter_") != lora and _of_model(name)
    )
    findings.add(*(f"{place}: model/{name}, but the run {'has' if lora else 'does not have'} LoRA" for name in foreign))


def _of_model(name: str) -> bool:
    return name.startswith("adapter_") or name.endswith((".safetensors", ".safetensors.index.json"))


def compare_identity(findings: Findings, place: Any, copy: dict[str, Any], identity: dict[str, Any]) -> None:
    """Compare the identity in a checkpoint with that in manifest.json, key by key."""
    for key in sorted(copy.keys() | identity.keys()):
        findings.expect(place, f"identity.{key}", copy.get(key), identity.get(key), "manifest.json")


def check_record(findings: Findings, checkpoints: list[Checkpoint], record: Record, walked: Walked) -> None:
    """Compare head, tokens and skipped batches of every checkpoint with the record."""
    for checkpoint in checkpoints:
        step = checkpoint.step
        if step > record.batches:
            findings.add(f"checkpoint step-{step:08d}: the record ends earlier, at step {record.batches}")
            continue
        with findings.reading(checkpoint.path / MANIFEST):
            head = walked.heads[step]
            if checkpoint.head != head:
                findings.add(
                    f"checkpoint step-{step:08d}: has head {checkpoint.head}, the record has {head} at this step"
                )
            if step in walked.tokens:
                findings.expect(
                    checkpoint.path / MANIFEST, "tokens", checkpoint.manifest["tokens"], walked.tokens[step]
                )
            claimed, expected = checkpoint.manifest.get("skipped", 0), walked.skipped[step]
            if claimed != expected:
                findings.add(
                    f"{checkpoint.path}: says {claimed} skipped batches, the record has {expected} at this step"
                )
