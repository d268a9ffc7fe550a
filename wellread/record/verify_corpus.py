"""Verify a corpus: its files, counts and tables against its tokens, its tokenizer, and its settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import suffixes, tokenizer
from wellread.corpus.canaries import FILE as CANARIES
from wellread.corpus.columns import is_ascending
from wellread.corpus.digest import corpus_key
from wellread.corpus.marks import FILE as MARKS
from wellread.corpus.read import META, METRICS, Corpus
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.summary import REASONS
from wellread.errors import UserError
from wellread.files import load_array, read_json, release, sha256_file
from wellread.record import verify_canaries, verify_marks, verify_segments, verify_tables
from wellread.record.findings import Findings
from wellread.record.verify_entries import is_temporary
from wellread.record.verify_tables import SAMPLES
from wellread.whole import unusable

COUNTS = ("samples", "trainable", "sealed", "tokens", "targets", "sealed_tokens", "longest", "duplicates")
PACKED_COUNTS = ("segments", "sealed_segments")
SET = {
    **dict.fromkeys(("name", "schema", "template", "rows", "taken", "usable", "sha256"), object),
    "ignored": {...: int},
}
"""Keys of a data set in corpus.json."""
CONTENT = META | {
    "version": int, "checksum": str, "sets": [SET], "source": SET,
    "tokenizer": dict.fromkeys(("size", "bos", "eos", "sha256"), object),
}  # fmt: skip
"""Shape of corpus.json, with the keys that reading samples does not need."""
FILES = ("tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", SAMPLES)
INDEX = ("tokens.sa", "tokens.sa.json")
SAMPLES_AT_ONCE = 1 << 20
"""Samples, or offsets, that are compared at once, so that the memory does not grow with the corpus."""
TOKENS_AT_ONCE = 1 << 24
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
        digests = verify_tables.check_samples(findings, corpus)
    if corpus.packed:
        with findings.reading(corpus.path / SEGMENTS):
            verify_segments.check_segments(findings, corpus)
    if METRICS in corpus.meta["sizes"] or corpus.metrics:
        with findings.reading(corpus.path / METRICS):
            verify_tables.check_metrics(findings, corpus)
    with findings.reading(corpus.path / CANARIES):
        verify_canaries.check(findings, corpus)
    with findings.reading(corpus.path / MARKS):
        verify_marks.check(findings, corpus)
    return digests


def _check_description(findings: Findings, corpus: Corpus) -> None:
    """The fields of corpus.json that follow from other files or other fields."""
    meta, place = corpus.meta, corpus.path / "corpus.json"
    files = {*FILES} | ({*PACKED_FILES} & meta["sizes"].keys() and {*PACKED_FILES}) | ({METRICS} & meta["sizes"].keys())
    files |= {CANARIES} if corpus.canaries else set()
    files |= {MARKS} if corpus.marks else set()
    findings.expect(place, "version", meta.get("version"), 1)
    findings.expect_checksum(place, meta)
    _check_keys(findings, corpus)
    findings.expect(place, "sizes", sorted(meta["sizes"]), sorted(files))
    if "sha256" in meta:
        findings.expect(place, "sha256", sorted(meta["sha256"]), sorted(files - {"tokens.bin"}))
        for name, sha256 in meta["sha256"].items():
            findings.expect(corpus.path / name, "sha256", sha256_file(corpus.path / name), sha256, "corpus.json")
    expected = "<u2" if corpus.words <= 65536 else "<u4"
    if meta["dtype"] != "<u4" or expected == "<u4":  # the vocabulary of the model may be larger than the tokenizer's
        findings.expect(place, "dtype", meta["dtype"], expected)
    names, listed = {path.name for path in corpus.path.iterdir()}, files | {"corpus.json", "tokenizer", *INDEX}
    foreign = sorted(name for name in names - listed if not is_temporary(name, listed | {METRICS}))
    foreign += sorted(
        f"tokenizer/{path.name}" for path in corpus.tokenizer.iterdir() if path.name not in tokenizer.FILES
    )
    findings.add(*(f"{corpus.path / name}: not listed in corpus.json; remove it" for name in foreign))
    if names & {*INDEX} and (
        reason := suffixes.problem(corpus.path / "tokens.bin", np.dtype(meta["dtype"]), again=True)
    ):
        findings.add(f"{corpus.path / INDEX[0]}: {reason}; remove it and {INDEX[1]}, or run wellread index")
    actual = tokenizer.fingerprint(corpus.tokenizer)
    findings.expect(place, "tokenizer.sha256", meta["tokenizer"].get("sha256"), actual, "the files in tokenizer/")
    with findings.reading(corpus.tokenizer):
        size, ids = _vocabulary(corpus.tokenizer)
        findings.expect(place, "tokenizer.size", meta["tokenizer"]["size"], size, "the files in tokenizer/")
        for name, token in ids.items():
            if name in meta["tokenizer"]:
                findings.expect(place, f"tokenizer.{name}", meta["tokenizer"][name], token, "the files in tokenizer/")
    _check_sets(findings, place, meta)
    if key := re.search(r"-([0-9a-f]{12})$", corpus.path.name):
        findings.expect(place, "settings", corpus_key(meta["settings"]), key.group(1), "the name of the corpus")


def _check_sets(findings: Findings, place: Path, meta: dict[str, Any]) -> None:
    """What corpus.json says twice: about its data sets and their settings, and about rows that were skipped."""
    settings, sets = meta["settings"], meta.get("sets") or [meta["source"]]
    described = settings.get("sets", [])
    if described:
        findings.expect(place, "sets", [each["name"] for each in sets], [each["name"] for each in described])
        for each, of in zip(sets, described, strict=False):
            findings.expect(place, f"sets: schema of {each['name']}", each["schema"], of["schema"], "settings")
            findings.expect(place, f"sets: sha256 of {each['name']}", each["sha256"], of["content"], "settings")
    for each in sets:
        if not 0 <= each.get("taken", 0) <= each.get("rows", 0):
            findings.add(f"{place}: sets: {each['name']}: takes {each['taken']} of {each['rows']} rows")
    texts = all(each.get("schema") == "text" for each in sets)
    findings.expect(place, "kind", meta.get("kind"), "text" if texts else "instruction", "schemas of its data sets")
    if "packing" in settings or "packing" in meta:
        findings.expect(place, "packing", meta.get("packing"), settings.get("packing"), "settings")
    if len(meta.get("bad_rows", ())) > settings.get("max_bad_rows", 0):
        findings.add(f"{place}: bad_rows: {len(meta['bad_rows'])}, but settings.max_bad_rows is lower")


def _check_keys(findings: Findings, corpus: Corpus) -> None:
    """corpus.json has all keys of its version, and no others; the names of what was cut or left out are open."""
    meta, place = corpus.meta, corpus.path / "corpus.json"
    described = {key: None if key in ("settings", "canaries", "marks") else value for key, value in meta.items()}
    findings.expect_keys(place, described, CONTENT)
    reasons = meta["counts"].keys() - {*COUNTS, *PACKED_COUNTS}
    unknown = sorted(reasons - {*REASONS}) if "checksum" in meta else []  # older versions may have had other reasons
    findings.add(*(f"{place}: counts.{name}: is not a key of this file" for name in unknown))
    of_stories = isinstance(meta.get("packing"), str) or "packing" in meta["settings"]
    required = ["tokenizer.eos", "kind", "bad_rows", *(["tokenizer.bos", "packing", "metrics"] if of_stories else [])]
    required += ["sha256"] if "checksum" in meta else []
    of_a_set = ("schema", "template", "rows", "taken", "sha256", *(["usable"] if "checksum" in meta else []))
    for i, _ in enumerate(meta.get("sets", ())):
        required += [f"sets.{i}.{name}" for name in of_a_set]
    findings.add(*(f"{place}: {key} is missing; restore it from a copy" for key in required if not _has(meta, key)))
    for each in meta.get("sets", ()):
        n_taken, n_rows = each.get("taken", 0), each.get("rows", 0)
        if not n_taken <= each.get("usable", n_taken) <= max(n_taken, n_rows):
            findings.add(f"{place}: sets: {each['name']}: usable {each['usable']}, expected {n_taken} to {n_rows} rows")


def _has(content: Any, key: str) -> bool:
    """Whether an object has a dotted key."""
    first, _, inner = key.partition(".")
    if isinstance(content, list):
        return _has(content[int(first)], inner)
    return first in content and (not inner or _has(content[first], inner))


def _vocabulary(directory: Path) -> tuple[int, dict[str, int | None]]:
    """Size of a vocabulary, and the ids of the tokens that begin and end a sequence, if its files name them."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if problem := unusable(file):
        raise UserError(f"{file}: {problem}")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # it raises nothing more specific
        raise UserError(f"{file}: damaged ({error}); restore it from a copy") from None
    settings = directory / "tokenizer_config.json"
    values, ids = read_json(settings) if settings.is_file() else {}, {}
    for name in ("bos", "eos"):
        token = values.get(f"{name}_token")
        if text := token.get("content") if isinstance(token, dict) else token:
            ids[name] = backend.token_to_id(text)
    return backend.get_vocab_size(with_added_tokens=True), ids


def _check_arrays(findings: Findings, corpus: Corpus) -> None:
    """Sizes and offsets, without which no sample can be read."""
    path = corpus.path
    if not findings.expect(path / "corpus.json", "dtype", corpus.meta["dtype"] in ("<u2", "<u4"), True):
        return
    n_tokens, excess = divmod((path / "tokens.bin").stat().st_size, np.dtype(corpus.meta["dtype"]).itemsize)
    findings.expect(path / "tokens.bin", "bytes after the last token", excess, 0)
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
    outside = _first_outside(offsets, spans, span_offsets)
    findings.add(*(f"{path / 'targets.npy'}: row {i}: outside its sample" for i in outside))
    largest = _largest(np.memmap(path / "tokens.bin", dtype=corpus.meta["dtype"], mode="r"))
    if largest >= corpus.words:
        findings.add(f"{path / 'tokens.bin'}: has token {largest:,}, but the tokenizer only {corpus.words:,}")


def _first_outside(offsets: NDArray[np.int64], spans: NDArray[np.int64], span_offsets: NDArray[np.int64]) -> list[int]:
    """The first span that is outside its sample, or none; some samples at once."""
    for start in range(0, len(offsets) - 1, SAMPLES_AT_ONCE):
        stop = min(start + SAMPLES_AT_ONCE, len(offsets) - 1)
        first, last = int(span_offsets[start]), int(span_offsets[stop])
        lengths = np.repeat(np.diff(offsets[start : stop + 1]), np.diff(span_offsets[start : stop + 1]))
        part = spans[first:last]
        outside = np.flatnonzero((part[:, 0] < 0) | (part[:, 1] <= part[:, 0]) | (part[:, 1] > lengths))
        if len(outside):
            return [first + int(outside[0])]
    return []


def _largest(tokens: NDArray[Any]) -> int:
    """The largest token; some tokens at once."""
    largest = 0
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        largest = max(largest, int(tokens[start : start + TOKENS_AT_ONCE].max()))
        release(tokens)
    return largest


def _offsets(findings: Findings, path: Path, n: int, end: int) -> NDArray[np.int64] | None:
    """Offsets of `n` things that end at `end`; None, with a problem, if they are anything else."""
    offsets = np.asarray(load_array(path, "restore it from a copy"))
    if offsets.dtype != np.int64 or offsets.shape != (n + 1,):
        findings.add(f"{path}: {offsets.dtype}{list(offsets.shape)}, expected int64[{n + 1}]")
    elif offsets[0] != 0 or offsets[-1] != end or not is_ascending(offsets):
        findings.add(f"{path}: does not ascend from 0 to {end:,}")
    else:
        return offsets
    return None
