"""Merge shards into a corpus: trainable samples first, then sealed ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wellread.corpus.canaries import FILE as CANARIES
from wellread.corpus.columns import Columns, duplicates, first_rows, joined
from wellread.corpus.digest import corpus_hash
from wellread.corpus.marks import FILE as MARKS
from wellread.corpus.pack import Packed, packed
from wellread.corpus.read import METRICS
from wellread.corpus.shards import shard_paths, sides, totals
from wellread.corpus.tables import samples_table, table_of_samples, write_metrics, write_segments
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_array, write_json

KEPT = ("lengths", "spans", "n_spans", "digest", "document", "sealed", "set_id", "metrics")
"""Columns that stay in memory for all samples while shards are merged."""


def merge(
    build: Path,
    *,
    sets: Sequence[str],
    vocab_size: int,
    settings: dict[str, Any],
    extra: dict[str, Any],
    metrics: Sequence[str] = (),
    pack: int | None = None,
) -> None:
    """Merge all shards into the files of a corpus, trainable samples first, then sealed ones.

    Memory: one shard at a time (with `pack`: all trainable or all sealed samples), and some tens of bytes per sample.

    Parameters
    ----------
    sets : sequence of str
        Names of the data sets that the samples come from.
    metrics : sequence of str
        Names of the shards' text metrics, which are written to metrics.parquet.
    pack : int, optional
        Pack the trainable and the sealed samples into sequences of this many tokens (`wellread.corpus.pack`); canaries
        are not packed, because a slot reads one canary.

    Raises
    ------
    UserError
        When no trainable sample is left.
    """
    dtype = "<u2" if vocab_size <= 65536 else "<u4"
    counts, examples = _totals(build, sets)
    canary_set = len(sets) - 1 if "canaries" in extra else None  # they are added as the last set
    columns, packs = _write_samples(build, sets, dtype, pack, unpacked_set=canary_set)
    names = ["tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", "samples.parquet"]
    names += [name for name in (CANARIES, MARKS) if (build / name).is_file()]
    if metrics:
        write_metrics(build, dict(zip(metrics, columns["metrics"].T, strict=True)))
        names.append(METRICS)
    n_duplicates = duplicates(columns["document"], columns["set_id"], columns["first_row"])
    if packs:
        segments = joined([packed.segments for packed in packs])
        n_duplicates = duplicates(segments["document"], segments["set_id"], first_rows(segments))
        counts["segments"] = len(segments["document"])
        counts["sealed_segments"] = int(segments["sealed"].sum())
        names += write_segments(build, segments, np.concatenate([each.n_segments for each in packs]), sets)
    meta = {
        "version": 1,
        "hash": corpus_hash(
            (value.tobytes() for value in columns["digest"]),
            columns["document"].tolist(),
            ("sealed" if sealed else "trainable" for sealed in columns["sealed"]),
        ),
        "dtype": dtype,
        "counts": _counts(columns, n_duplicates, counts),
        "settings": settings,
        **(extra | ({"examples": dict(sorted(examples.items()))} if examples else {})),
        "sizes": {name: (build / name).stat().st_size for name in names},
        "sha256": {name: sha256_file(build / name) for name in names if name != "tokens.bin"},  # has the digests
    }
    write_json(build / "corpus.json", with_checksum(meta))


def _write_samples(
    build: Path, sets: Sequence[str], dtype: str, pack: int | None, unpacked_set: int | None
) -> tuple[Columns, list[Packed]]:
    """Write the files of samples; return the columns in KEPT, and with `pack` the packed samples of both splits.

    Samples of data set `unpacked_set` are not packed.
    """
    kept_columns: list[Columns] = []
    packs: list[Packed] = []
    n_samples = 0
    with open(build / "tokens.bin", "wb") as file, table_of_samples(build / "samples.parquet") as write:
        for sealed in (False, True):
            parts: Iterable[Columns] = sides(build, sealed)
            if pack:
                packs.append(packed(joined(list(parts)), pack, unpacked_set))
                parts = [packs[-1].samples]
            for part in parts:
                n = len(part["lengths"])
                file.write(np.ascontiguousarray(part["tokens"], dtype=dtype).data)
                if n:
                    write(samples_table(part, sets, np.arange(n_samples, n_samples + n)))
                n_samples += n
                kept_columns.append({name: part[name] for name in KEPT} | {"first_row": first_rows(part)})
        file.flush()
        os.fsync(file.fileno())
    columns = joined(kept_columns)
    write_array(build / "offsets.npy", np.concatenate([[0], np.cumsum(columns["lengths"])]).astype(np.int64))
    write_array(build / "targets.npy", columns["spans"].astype(np.int32))
    write_array(build / "target_offsets.npy", np.concatenate([[0], np.cumsum(columns["n_spans"])]).astype(np.int64))
    return columns, packs


def _totals(build: Path, sets: Sequence[str]) -> tuple[Counter[str], dict[str, str]]:
    """The totals of all shards; an error when no trainable sample is left."""
    counts, examples = totals(build)
    n_trainable = n_sealed = 0
    for path in shard_paths(build):
        with np.load(path) as file:
            sealed = int(file["sealed"].sum())
            n_sealed, n_trainable = n_sealed + sealed, n_trainable + len(file["sealed"]) - sealed
    if n_trainable == 0:
        counts["sealed"] = n_sealed
        remedy = "lower --holdout or provide more rows" if n_sealed else "provide rows with tokens to learn"
        remedy = "raise --seq_len" if counts["dropped_prompt_fills_window"] else remedy
        raise UserError(f"{'+'.join(sets)}: no trainable sample is left ({_reasons(counts)}); {remedy}")
    return counts, examples


def _counts(columns: Columns, n_duplicates: int, counts: Counter[str]) -> dict[str, Any]:
    n, sealed = len(columns["lengths"]), columns["sealed"]
    return {
        "samples": n,
        "trainable": int((~sealed).sum()),
        "sealed": int(sealed.sum()),
        "tokens": int(columns["lengths"].sum()),
        "targets": int((columns["spans"][:, 1] - columns["spans"][:, 0]).sum()),
        "sealed_tokens": int(columns["lengths"][sealed].sum()),
        "longest": int(columns["lengths"].max()),
        "duplicates": n_duplicates,
        **dict(sorted(counts.items())),
    }


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')}: {n}" for reason, n in sorted(counts.items()))
