"""Tracing a text to its readings, compared with a plain search in the record and the tokens of its samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.reading import BATCH

from finetune.prepare import prepare
from wellread import open_run
from wellread.config import RunConfig
from wellread.corpus import suffixes
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.record import index as indexes
from wellread.record import search as searches
from wellread.record import trace as traces
from wellread.record.copies import Copies, copies
from wellread.record.history import History
from wellread.record.index import open_index, scanned
from wellread.record.search import search
from wellread.record.trace import Readings, Tracer
from wellread.run import RunDirectory

LEAST = 6
KEYS = ["sample_id", "source", "row", "batch", "step", "slot", "loss", "loss_now"]
Place = tuple[int, int, int, list[tuple[int, int, int, float]]]
"""First token, end, occurrences, and (sample, batch, slot, loss) of each reading."""


def word(tokens: NDArray[Any]) -> str:
    """Tokens as a string with one character per token, so that Python can search in it."""
    return "".join(chr(int(token)) for token in tokens)


def occurrences(span: str, text: str) -> int:
    """Occurrences of a string, overlapping ones included."""
    count, place = 0, text.find(span)
    while place >= 0:
        count, place = count + 1, text.find(span, place + 1)
    return count


def by_hand(
    ids: list[int], units: dict[int, str], sample_of: dict[int, int], rows: list[dict[str, Any]]
) -> list[Place]:
    """Maximal spans of `ids` in the units of the samples that `rows` of the record name."""
    read = {row["sample_id"] for row in rows}
    texts = {unit: text for unit, text in units.items() if sample_of[unit] in read}
    everything = "\U0010ffff".join(texts.values())  # no span contains this character
    text, spans, reach = word(np.array(ids)), [], 0
    for first in range(len(ids)):
        stop = max(first, reach)  # what a longer match contains occurs, too
        while stop < len(ids) and text[first : stop + 1] in everything:
            stop += 1
        if stop - first >= LEAST and stop > reach:
            spans.append((first, stop))
        reach = max(reach, stop)
    places = []
    for first, stop in spans:
        counts = {unit: occurrences(text[first:stop], of) for unit, of in texts.items() if text[first:stop] in of}
        samples = {sample_of[unit] for unit in counts}
        readings = [
            (row["sample_id"], row["batch_id"], row["slot"], row["loss"]) for row in rows if row["sample_id"] in samples
        ]
        places.append((first, stop, sum(counts.values()), sorted(readings, key=lambda each: each[1:3])))
    return places


def test_parts_of_200_read_and_200_sealed_rows(history: History, corpus: Corpus, tmp_path: Path) -> None:
    """By index and by scan, at a checkpoint in the middle of the run."""
    record, step = history.record, 8
    assert record is not None
    rows = record.table(batches=(0, step)).to_pylist()
    assert len(rows) == step * BATCH
    units = {i: word(corpus.tokens(i)) for i in range(corpus.n)}
    index_files(corpus, tmp_path)
    run = open_run(str(history.name))
    tracers = [Tracer.of(run, step, suffix_index(tmp_path, corpus)), Tracer.of(run, step, None)]
    rng, table = np.random.default_rng(0), corpus.samples().to_pylist()
    read = [row["sample_id"] for row in rows]
    sealed = list(range(corpus.n_trainable, corpus.n))
    complete = n_parts = 0
    for k, sample_id in enumerate([*rng.choice(read, 200), *rng.choice(sealed, 200)]):
        tokens = corpus.tokens(int(sample_id))
        start = int(rng.integers(0, max(1, len(tokens) - LEAST)))
        text = run.tokenizer.decode(tokens[start : start + int(rng.integers(LEAST, 60))].tolist())
        ids, characters = run.tokenizer.encode(text)
        expected = by_hand(ids, units, {i: i for i in units}, rows)
        by_index, by_scan = (tracer.trace(text, LEAST) for tracer in tracers)
        assert by_index[1] == by_scan[1] == len(ids)
        units_of = [
            [(s.match.first, s.match.stop, s.match.units.tolist()) for s in way[0]] for way in (by_index, by_scan)
        ]
        assert units_of[0] == units_of[1]
        assert [each[:2] for each in units_of[0]] == [span[:2] for span in expected]
        for each, (first, stop, count, readings) in zip(tracers[0].objects(by_index[0]), expected, strict=True):
            start, end = characters[first][0], characters[stop - 1][1]
            assert list(each) == ["text", "start", "end", "count", "readings"]
            assert (each["start"], each["end"], each["count"], each["text"]) == (start, end, count, text[start:end])
            assert [
                tuple(r[name] for name in ("sample_id", "batch", "slot", "loss")) for r in each["readings"]
            ] == readings
            for reading in each["readings"]:
                row = table[reading["sample_id"]]
                assert list(reading) == KEYS
                assert reading["step"] == reading["batch"] + 1 <= step
                assert (reading["source"], [reading["row"]]) == (row["source"], row["rows"])
                assert reading["sample_id"] < corpus.n_trainable
        n_parts += len(expected)
        if k < 200 and [span[:2] for span in expected] == [(0, len(ids))]:
            complete += 1
    assert complete >= 150  # most of what was read is traced as a whole; the others begin inside a word
    assert n_parts > 250


def index_files(corpus: Corpus, folder: Path) -> None:
    """An index of a corpus that other tests use, in a folder of its own."""
    shutil.copyfile(corpus.path / "tokens.bin", folder / "tokens.bin")
    suffixes.build(folder / "tokens.bin", np.dtype(corpus.meta["dtype"]))


def suffix_index(folder: Path, corpus: Corpus) -> suffixes.Index:
    return suffixes.Index((suffixes.open_suffixes(folder / "tokens.bin", np.dtype(corpus.meta["dtype"])),))


def test_step_zero_has_read_nothing(history: History, corpus: Corpus) -> None:
    run = open_run(str(history.name))
    text = run.tokenizer.decode(corpus.tokens(int(history.order.batch(0)[0])).tolist())
    assert Tracer.of(run, 0, None).trace(text, LEAST)[0] == []
    assert len(Tracer.of(run, 1, None).trace(text, LEAST)[0]) >= 1


@pytest.fixture(scope="module")
def packed(corpora: Path) -> Corpus:
    return Corpus.open(prepare(RunConfig.of(corpora=str(corpora), seq_len=512, pack=True)))


def readings_of(samples: list[int], n: int) -> Readings:
    """Readings of these of n samples, one after the other, in batches of 4."""
    k = np.arange(len(samples))
    columns = np.array(samples), k // 4, k % 4, (k / 8).astype(np.float32)
    return Readings.counted(n, lambda: [columns])


def test_no_part_crosses_a_segment(packed: Corpus) -> None:
    """Texts over the bound of two segments give two spans, also when the segments follow each other in one sample."""
    segments, rng = Segments(packed), np.random.default_rng(0)
    samples = rng.choice(packed.n_trainable, 60).tolist()  # some of them twice
    tracer = Tracer(
        packed, Decoder.load(packed.tokenizer), readings_of(samples, packed.n), scanned(packed, int(packed.offsets[-1]))
    )
    units = {i: word(segments.tokens(i)) for i in range(segments.n)}
    sample_of = dict(enumerate(segments.sample_of(np.arange(segments.n)).tolist()))
    rows = [{"sample_id": sample, "batch_id": k // 4, "slot": k % 4, "loss": k / 8} for k, sample in enumerate(samples)]
    across = 0
    for sample in dict.fromkeys(samples):
        for start in packed.starts(sample)[1:3].tolist():
            ids = packed.tokens(sample)[start - 20 : start + 20].astype(np.int64)
            (matches,) = tracer.matches([ids], LEAST)
            expected = by_hand(ids.tolist(), units, sample_of, rows)
            assert [(match.first, match.stop, len(match.units)) for match in matches] == [span[:3] for span in expected]
            assert all(match.stop - match.first < 40 for match in matches)
            across += 1
    assert across > 30


def test_readings_of_a_segment_name_its_row(packed: Corpus) -> None:
    segments = Segments(packed)
    sample = next(i for i in range(1, packed.n_trainable) if len(packed.starts(i)) > 2)
    unit = int(packed.segment_offsets[sample]) + 1
    tracer = Tracer(
        packed,
        Decoder.load(packed.tokenizer),
        readings_of([sample, 0, sample], packed.n),
        scanned(packed, int(packed.offsets[-1])),
    )
    text = tracer.decoder.decode(segments.tokens(unit).tolist())
    spans, _ = tracer.trace(text, LEAST)
    longest = max(tracer.objects(spans), key=lambda each: each["end"] - each["start"])
    row = segments.table.slice(unit, 1).to_pylist()[0]
    assert {(each["sample_id"], each["source"], each["row"]) for each in longest["readings"]} == {
        (sample, row["source"], row["rows"][0])
    }
    assert [(each["batch"], each["slot"]) for each in longest["readings"]] == [(0, 0), (0, 2)]


def test_a_scan_in_small_blocks(packed: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matches across the bounds of blocks, and windows whose hashes are equal at first."""
    tokens = np.fromfile(packed.path / "tokens.bin", packed.meta["dtype"])[:20_000]
    rng = np.random.default_rng(0)
    windows = np.array([tokens[i : i + 4] for i in rng.integers(0, 19_996, 50)] + [[1, 2, 3, 4], [2047, 0, 2047, 1]])
    expected = sorted(
        (k, place)
        for k, window in enumerate(windows)
        for place in np.flatnonzero((np.lib.stride_tricks.sliding_window_view(tokens, 4) == window).all(1)).tolist()
    )
    for at_once, base in ((997, indexes.BASE), (1 << 21, indexes.BASE), (1 << 21, -1)):
        monkeypatch.setattr(indexes, "TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr(indexes, "BASE", base)
        numbers, places = scanned(packed, 20_000)(windows)
        assert sorted(zip(numbers.tolist(), places.tolist(), strict=True)) == expected


def test_a_text_without_tokens_of_the_corpus(packed: Corpus) -> None:
    tracer = Tracer(
        packed, Decoder.load(packed.tokenizer), readings_of([0, 1], packed.n), scanned(packed, int(packed.offsets[-1]))
    )
    for text in ("", "x", "🦙" * 40, "<|endoftext|>" * 8):
        assert tracer.trace(text, LEAST)[0] == []


def test_the_index_of_a_run(copied_run: RunDirectory) -> None:
    corpus = open_run(copied_run.path).corpus
    assert open_index(corpus) is None
    assert list(indexes.problems(corpus).values()) == [suffixes.MISSING]
    suffixes.build(corpus.path / "tokens.bin", np.dtype(corpus.meta["dtype"]))
    index = open_index(corpus)
    assert index is not None
    first, second = corpus.tokens(0), corpus.tokens(1)
    n_copies = sum(word(first) in word(corpus.tokens(i)) for i in range(corpus.n))
    assert copies(corpus, first, index) == copies(corpus, first, None) == Copies(len(first), n_copies, 0)
    across = np.concatenate([first[-4:], second[:4]])
    assert index.count(across.tolist()) >= 1
    assert copies(corpus, across, index) == copies(corpus, across, None) == Copies(8, 0, 0)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_search_for_text_by_index(kind: str, corpus: Corpus, packed: Corpus, tmp_path: Path) -> None:
    """Texts that begin and end inside tokens, in one token, over many, nowhere: the same as by a scan."""
    of = packed if kind == "packed" else corpus
    index_files(of, tmp_path)
    index, decoder = suffix_index(tmp_path, of), Decoder.load(of.tokenizer)
    units: Any = Segments(of) if of.packed else of
    rng = np.random.default_rng(0)
    texts = [
        "e",
        "th",
        "\n\n###",
        " the ",
        "Response:\n",
        "<|endoftext|>",
        "...",
        "ee",
        "xyzzy",
        "é",
        "### Instruction",
    ]
    for unit in rng.integers(0, units.n, 60).tolist():
        text = decoder.decode(units.tokens(unit).tolist())
        start = int(rng.integers(0, len(text) - 30))
        texts.append(text[start : start + int(rng.integers(2, 30))])
    texts += [text[:-1] + "q" for text in texts[-10:]]
    n_hits = 0
    for text in texts:
        hits = search(units, decoder, text, index=index)
        assert hits == search(units, decoder, text), text
        n_hits += len(hits)
    assert n_hits > 1000


def test_which_searches_use_the_index(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of whole words is looked up; one that can be very many sequences of tokens is scanned."""
    index_files(corpus, tmp_path)
    index, decoder = suffix_index(tmp_path, corpus), Decoder.load(corpus.tokenizer)
    scans: list[str] = []
    monkeypatch.setattr(searches, "_scan", lambda *_: scans.append("scan") or [])
    assert search(corpus, decoder, " the capital of Australia", index=index)
    assert scans == []
    monkeypatch.setattr(searches, "WINDOWS_AT_ONCE", 10)
    assert search(corpus, decoder, "e ", index=index) == []
    assert scans == ["scan"]


def test_the_first_readings_of_a_span_and_their_number(tiny_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long record is read again piece by piece for each question, with the same answers."""
    run = open_run(tiny_run.path)
    sample = int(run.order.batch(2)[1])
    tracer = Tracer.of(run, 12, None)
    spans, _ = tracer.trace(run.tokenizer.decode(run.corpus.tokens(sample)[:-1].tolist()), 1)
    complete = tracer.objects(spans)
    assert [len(each["readings"]) for each in complete] == [tracer.n_readings(span) for span in spans]
    assert max(len(each["readings"]) for each in complete) >= 1
    for most in (1, 3):
        assert tracer.objects(spans, most) == [each | {"readings": each["readings"][:most]} for each in complete]
    rows = run.record.table(["sample_id", "batch_id", "slot", "loss"], (0, 12)).to_pylist()
    for span, each in zip(spans, complete, strict=True):
        of = {*span.match.units.tolist()}
        expected = [tuple(row.values()) for row in rows if row["sample_id"] in of]
        assert [tuple(r[key] for key in ("sample_id", "batch", "slot", "loss")) for r in each["readings"]] == expected
    monkeypatch.setattr(traces, "KEPT", 0)
    monkeypatch.setattr(traces, "ROWS_AT_ONCE", 1)  # one batch
    again = Tracer.of(run, 12, None)
    assert again.readings.counts.tolist() == tracer.readings.counts.tolist()
    assert [ids.tolist() for ids, *_ in again.readings.pieces()] == [run.order.batch(k).tolist() for k in range(12)]
    assert again.objects(spans) == complete
    assert again.objects(spans, 3) == tracer.objects(spans, 3)
    with pytest.raises(UserError, match="out of range, the record has batches"):
        Tracer.of(run, run.record.batches + 1, None)


def test_a_text_whose_parts_occur_too_often_is_refused(
    tiny_run: RunDirectory, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows = np.array([[int(token)] for token in corpus.tokens(0)[:30]])
    lookups = [scanned(corpus, int(corpus.offsets[-1]))]
    shutil.copy(corpus.path / "tokens.bin", tmp_path / "tokens.bin")
    suffixes.build(tmp_path / "tokens.bin", np.dtype(corpus.meta["dtype"]))
    array = suffixes.open_suffixes(tmp_path / "tokens.bin", np.dtype(corpus.meta["dtype"]))
    lookups.append(indexes.indexed(suffixes.Index((array,))))
    n = len(lookups[0](windows)[0])
    assert [len(lookup(windows)[0]) for lookup in lookups] == [n, n]
    monkeypatch.setattr(indexes, "MOST_PLACES", n - 1)
    for lookup in lookups:
        with pytest.raises(UserError, match=r"^cut off after [\d,]+ places: the text has parts of 1 token that occur"):
            lookup(windows)
