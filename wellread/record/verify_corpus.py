"""Verify a corpus: its files, counts and tables against its tokens, its tokenizer, and its settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import tokenizer
from wellread.corpus.digest import DIGEST_BYTES, corpus_hash, corpus_key
from wellread.corpus.holdout import is_sealed
from wellread.corpus.pack import joined_document, shared
from wellread.corpus.read import METRICS, Corpus
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.files import load_array, read_json
from wellread.record.findings import Findings

if TYPE_CHECKING:
    import pyarrow

SAMPLES = "samples.parquet"
FILES = ("tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", SAMPLES)
PACKED_FILES = ("segments.npy", "segment_offsets.npy", SEGMENTS)


def check(findings: Findings, corpus: Corpus) -> NDArray[np.uint8] | None:
    """Check a corpus; return the digests of its samples, (n, 16), or None when it cannot be read."""
    digests = None
    with findings.reading(corpus.path / "corpus.json"):
        _check_description(findings, corpus)
    n_problems = len(findings.problems)
    with findings.reading(corpus.path):
        _check_arrays(findings, corpus)
    if len(findings.problems) > n_problems:
        return None  # no sample can be read
    with findings.reading(corpus.path / SAMPLES):
        samples = corpus.samples()
        if not findings.expect(corpus.path / SAMPLES, "rows", len(samples), corpus.n, "counts of corpus.json"):
            return None
        digests = digest_array(samples["digest"])
        _check_hash(findings, corpus, samples)
        altered = [i for i in range(corpus.n) if corpus.digest(i) != digests[i].tobytes()]
        findings.add(*(f"{corpus.path}: sample {i}: its tokens or loss mask do not match its digest" for i in altered))
        _check_samples(findings, corpus, samples)
        _check_counts(findings, corpus, samples)
    if corpus.packed:
        with findings.reading(corpus.path / SEGMENTS):
            _check_segments(findings, corpus, corpus.samples())
    if METRICS in corpus.meta["sizes"] or corpus.metrics:
        with findings.reading(corpus.path / METRICS):
            _check_metrics(findings, corpus)
    return digests


def digest_array(column: pyarrow.ChunkedArray) -> NDArray[np.uint8]:
    """Digests of a table's column as a uint8 array (rows, 16), without a Python object per row."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * DIGEST_BYTES :][: len(chunk) * DIGEST_BYTES]
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, DIGEST_BYTES)


def _check_description(findings: Findings, corpus: Corpus) -> None:
    """The fields of corpus.json that follow from other files or other fields."""
    meta, place = corpus.meta, corpus.path / "corpus.json"
    files = {*FILES} | ({*PACKED_FILES} & meta["sizes"].keys() and {*PACKED_FILES}) | ({METRICS} & meta["sizes"].keys())
    findings.expect(place, "version", meta.get("version"), 1)
    findings.expect(place, "sizes", sorted(meta["sizes"]), sorted(files))
    expected = "<u2" if corpus.words <= 65536 else "<u4"
    if meta["dtype"] != "<u4" or expected == "<u4":  # the vocabulary of the model may be larger than the tokenizer's
        findings.expect(place, "dtype", meta["dtype"], expected)
    names = {path.name for path in corpus.path.iterdir() if not path.name.startswith(".")}
    foreign = sorted(names - files - {"corpus.json", "tokenizer"})
    findings.add(*(f"{corpus.path / name}: not listed in corpus.json; remove it" for name in foreign))
    actual = tokenizer.fingerprint(corpus.tokenizer)
    findings.expect(place, "tokenizer.sha256", meta["tokenizer"].get("sha256"), actual, "the files in tokenizer/")
    with findings.reading(corpus.tokenizer):
        size, eos = _vocabulary(corpus.tokenizer)
        findings.expect(place, "tokenizer.size", meta["tokenizer"]["size"], size, "the files in tokenizer/")
        if eos is not None:
            findings.expect(place, "tokenizer.eos", meta["tokenizer"]["eos"], eos, "the files in tokenizer/")
    if key := re.search(r"-([0-9a-f]{12})$", corpus.path.name):
        findings.expect(place, "settings", corpus_key(meta["settings"]), key.group(1), "the name of the corpus")


def _vocabulary(directory: Path) -> tuple[int, int | None]:
    """Size of a vocabulary, and the id of the end-of-sequence token if its files name it."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # it raises nothing more specific
        raise UserError(f"{directory / 'tokenizer.json'}: damaged ({error}); restore it from a copy") from None
    settings = directory / "tokenizer_config.json"
    token = read_json(settings).get("eos_token") if settings.is_file() else None
    text = token.get("content") if isinstance(token, dict) else token
    return backend.get_vocab_size(with_added_tokens=True), backend.token_to_id(text) if text else None


def _check_arrays(findings: Findings, corpus: Corpus) -> None:
    """Sizes and offsets, without which no sample can be read."""
    path = corpus.path
    if not findings.expect(path / "corpus.json", "dtype", corpus.meta["dtype"] in ("<u2", "<u4"), True):
        return
    n_tokens = (path / "tokens.bin").stat().st_size // np.dtype(corpus.meta["dtype"]).itemsize
    offsets = _offsets(findings, path / "offsets.npy", corpus.n, n_tokens)
    spans = load_array(path / "targets.npy", "restore it from a copy")
    if not findings.expect(path / "targets.npy", "shape", spans.shape[1:], (2,)):
        return
    span_offsets = _offsets(findings, path / "target_offsets.npy", corpus.n, len(spans))
    if corpus.packed:
        n_segments = len(load_array(path / "segments.npy", "restore it from a copy")) - 1
        _offsets(findings, path / "segments.npy", n_segments, n_tokens)
        _offsets(findings, path / "segment_offsets.npy", corpus.n, n_segments)
        if offsets is not None and (corpus.segments[corpus.segment_offsets] != offsets).any():
            findings.add(f"{path / 'segments.npy'}: its segments do not begin and end where the samples do")
    if offsets is None or span_offsets is None or not len(spans):
        return
    lengths = np.repeat(np.diff(offsets), np.diff(span_offsets))
    outside = np.flatnonzero((spans[:, 0] < 0) | (spans[:, 1] <= spans[:, 0]) | (spans[:, 1] > lengths))
    findings.add(*(f"{path / 'targets.npy'}: row {i}: outside its sample" for i in outside[:1]))
    largest = int(np.memmap(path / "tokens.bin", dtype=corpus.meta["dtype"], mode="r").max())
    if largest >= corpus.words:
        findings.add(f"{path / 'tokens.bin'}: has token {largest:,}, but the tokenizer only {corpus.words:,}")


def _offsets(findings: Findings, path: Path, n: int, end: int) -> NDArray[np.int64] | None:
    """Offsets of `n` things that end at `end`; None, with a problem, if they are anything else."""
    offsets = np.asarray(load_array(path, "restore it from a copy"))
    if offsets.dtype != np.int64 or offsets.shape != (n + 1,):
        findings.add(f"{path}: {offsets.dtype}{list(offsets.shape)}, expected int64[{n + 1}]")
    elif offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
        findings.add(f"{path}: does not ascend from 0 to {end:,}")
    else:
        return offsets
    return None


def _check_hash(findings: Findings, corpus: Corpus, samples: pyarrow.Table) -> None:
    actual = corpus_hash(*(samples[name].to_pylist() for name in ("digest", "document", "split")))
    findings.expect(corpus.path / "corpus.json", "hash", corpus.hash, actual, "its samples")


def _check_samples(findings: Findings, corpus: Corpus, samples: pyarrow.Table) -> None:
    """Columns that follow from the arrays, and the split, which follows from documents and holdout."""
    ids, place = np.arange(corpus.n), corpus.path / SAMPLES
    columns = {
        "sample_id": ids,
        "split": np.where(ids < corpus.n_trainable, "trainable", "sealed"),
        "n_tokens": corpus.lengths(ids),
        "n_targets": corpus.n_targets(ids),
    }
    for name, expected in columns.items():
        findings.expect_column(place, name, _values(samples, name), expected, "sample")
    if not corpus.packed:
        _check_holdout(findings, corpus, place, samples)
    _check_rows(findings, corpus, place, samples)


def _check_holdout(findings: Findings, corpus: Corpus, place: Path, table: pyarrow.Table) -> None:
    settings = corpus.meta["settings"]
    if not {"holdout", "holdout_seed"} <= settings.keys():
        return
    documents = table["document"].to_pylist()
    sealed = np.array([is_sealed(each, settings["holdout"], settings["holdout_seed"]) for each in documents])
    expected = np.where(sealed, "sealed", "trainable")
    findings.expect_column(place, "split by its document", _values(table, "split"), expected)


def _check_rows(findings: Findings, corpus: Corpus, place: Path, table: pyarrow.Table) -> None:
    """Every source is a data set of the corpus, and has the rows that the table names."""
    sets = corpus.meta.get("sets") or [corpus.meta["source"]]
    limits = {each["name"]: each.get("rows") for each in sets}
    for i, (source, rows) in enumerate(zip(table["source"].to_pylist(), table["rows"].to_pylist(), strict=True)):
        if source not in limits:
            findings.add(f"{place}: source: row {i}: {source}, which is not a data set of corpus.json")
        elif not rows or min(rows) < 0 or (isinstance(limits[source], int) and max(rows) > limits[source]):
            findings.add(f"{place}: rows: row {i}: {rows}, but {source} has {limits[source]} rows")


def _values(table: pyarrow.Table, name: str) -> NDArray[Any]:
    return np.array(table[name].to_pylist())


def _pairs(table: pyarrow.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _check_counts(findings: Findings, corpus: Corpus, samples: pyarrow.Table) -> None:
    ids, counts = np.arange(corpus.n), corpus.meta["counts"]
    lengths, targets = corpus.lengths(ids), corpus.n_targets(ids)
    table = Segments(corpus).table if corpus.packed else samples
    documents = table["document"].to_pylist()
    sources = {(name, rows[0]) for name, rows in _pairs(table, "source", "rows")}
    n_duplicates = {len(sources) - len({*documents}), len(documents) - len({*documents})}  # the second: older corpora
    expected = {
        "samples": len(samples),
        "trainable": _values(samples, "split").tolist().count("trainable"),
        "sealed": _values(samples, "split").tolist().count("sealed"),
        "tokens": int(lengths.sum()),
        "targets": int(targets.sum()),
        "sealed_tokens": int(lengths[corpus.n_trainable :].sum()),
        "longest": int(lengths.max()),
        "duplicates": counts.get("duplicates") if counts.get("duplicates") in n_duplicates else min(n_duplicates),
    }
    if corpus.packed:
        segments = Segments(corpus)
        expected |= {"segments": segments.n, "sealed_segments": segments.n - segments.n_trainable}
    values = {f"counts.{name}": (counts.get(name), value) for name, value in expected.items()}
    findings.expect_all(corpus.path / "corpus.json", values, "its samples")


def _check_segments(findings: Findings, corpus: Corpus, samples: pyarrow.Table) -> None:
    """Compare the segments table with the tokens, and with the samples that consist of them."""
    segments, place = Segments(corpus), corpus.path / SEGMENTS
    table, n = segments.table, segments.n
    if table.num_rows != n:
        findings.add(f"{corpus.path}: its segments table has {table.num_rows} rows, segments.npy has {n}")
        return
    digests = table["digest"].to_pylist()
    altered = [i for i in range(n) if segments.digest(i) != digests[i]]
    findings.add(*(f"{corpus.path}: segment {i}: its tokens or loss mask do not match its digest" for i in altered))
    samples_of = segments.sample_of(np.arange(n))
    moved = np.flatnonzero(table["sample_id"].to_numpy() != samples_of)
    findings.add(
        *(f"{corpus.path}: segment {i}: is not part of the sample that the segments table names" for i in moved)
    )
    columns = {
        "segment": np.arange(n),
        "n_tokens": segments.lengths(np.arange(n)),
        "n_targets": np.array([int(segments.targets(i).sum()) for i in range(n)]),
    }
    for name in ("split", "source"):
        columns[name] = _values(samples, name)[samples_of]
    for name, expected in columns.items():
        findings.expect_column(place, name, _values(table, name), expected, "segment")
    _check_holdout(findings, corpus, place, table)
    _check_rows(findings, corpus, place, table)
    _check_joined(findings, corpus, samples, table)


def _check_joined(findings: Findings, corpus: Corpus, samples: pyarrow.Table, table: pyarrow.Table) -> None:
    """Columns of packed samples that follow from their segments."""
    place = corpus.path / SAMPLES
    columns = {name: table[name].to_pylist() for name in ("document", "rows", "category", "author")}
    of_samples = {name: samples[name].to_pylist() for name in columns}
    for i, (a, b) in enumerate(pairwise(corpus.segment_offsets.tolist())):
        if joined_document(columns["document"][a:b]) != of_samples["document"][i]:
            findings.add(f"{corpus.path}: sample {i}: its document does not match its segments")
        rows = [row for of_segment in columns["rows"][a:b] for row in of_segment]
        findings.expect(place, f"rows: sample {i}", of_samples["rows"][i], rows, "its segments")
        for name in ("category", "author"):
            value = of_samples[name][i] or ""
            findings.expect(place, f"{name}: sample {i}", value, shared(columns[name][a:b]) or "", "its segments")


def _check_metrics(findings: Findings, corpus: Corpus) -> None:
    place = corpus.path / METRICS
    table = corpus._table(METRICS)
    findings.expect(place, "columns", table.column_names, ["sample_id", *corpus.metrics], "metrics in corpus.json")
    findings.expect_column(place, "sample_id", _values(table, "sample_id"), np.arange(corpus.n))
