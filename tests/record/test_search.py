"""Search for text in samples, compared with a plain search in their decoded texts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reading import STEPS

from wellread.corpus.decoder import Decoder
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.record import search
from wellread.record.history import History


def test_two_hundred_parts_of_read_rows_are_found(history: History, texts: list[str], root: Path) -> None:
    """Parts of rows of the source file, also from the middle of words; compared with a plain search."""
    from wellread.data import sets
    from wellread.data.sources import tables

    rows = {row.number: row.fields for row in tables.rows(sets.find("sample").sources[0]) if row.fields}
    rng, read = random.Random(0), history.order.batches(0, STEPS).ravel().tolist()
    assert history.tokenizer is not None
    checked = 0
    while checked < 200:
        sample_id = rng.choice(read)
        row = history.samples.rows(np.array([sample_id]))[0]["rows"][0]
        text = str(rows[row]["response"])
        start = rng.randrange(max(1, len(text) - 40))
        piece = text[start : start + rng.randrange(4, 40)]
        if not (text[max(0, start - 1)].isalpha() and piece[0].isalpha() and piece[-1].isalpha()):
            continue
        if piece not in texts[sample_id]:
            continue  # truncated at the end of the sample
        matches = [hit.sample_id for hit in search.search(history.reader, history.tokenizer, piece)]
        assert sample_id in matches, piece
        assert matches == [i for i, text_of_sample in enumerate(texts) if piece in text_of_sample]
        checked += 1


def test_occurrences_are_counted_and_overlap(history: History, texts: list[str]) -> None:
    assert history.tokenizer is not None
    for piece in ("e", "th", "\n\n###", " the ", "ess", "Response:\n", "<|endoftext|>", "é", "..."):
        matches = {hit.sample_id: hit.count for hit in search.search(history.reader, history.tokenizer, piece)}
        counts = {i: sum(text.startswith(piece, k) for k in range(len(text))) for i, text in enumerate(texts)}
        assert matches == {i: count for i, count in counts.items() if count}


def test_no_match_spans_two_samples(history: History, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert history.tokenizer is not None
    for at_once in (1, 1000, search.TOKENS_AT_ONCE):  # blocks of one sample, of a few, of all
        monkeypatch.setattr(search, "TOKENS_AT_ONCE", at_once)
        for i in range(0, 300, 30):
            across = texts[i][-20:] + texts[i + 1][:20]
            assert search.search(history.reader, history.tokenizer, across) == []
            assert i in [hit.sample_id for hit in search.search(history.reader, history.tokenizer, texts[i][-20:])]


class Samples:
    """A reader of token sequences, with the methods that a search needs."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self.sequences = [np.array(s, dtype=np.uint16) for s in sequences]
        self.n = len(sequences)

    def tokens(self, sample_id: int) -> np.ndarray[Any, Any]:
        return self.sequences[sample_id]

    def lengths(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([len(self.sequences[i]) for i in ids])


@pytest.mark.shared
@pytest.mark.parametrize("kind", [pytest.param("pythia", marks=pytest.mark.long), "llama2", "stories260K"])
def test_search_with_published_tokenizers(shared: Path, tmp_path: Path, kind: str) -> None:
    """GPT-NeoX's byte-level BPE, and SentencePiece with byte fallback, over texts of many scripts."""
    file = {
        "pythia": "tokenizers/pythia_20B_tokenizer.json",
        "llama2": "tokenizers/llama2_tokenizer.model",
        "stories260K": "stories260K/tok512.model",
    }[kind]
    shutil.copy(shared / file, tmp_path / ("tokenizer.json" if kind == "pythia" else "tokenizer.model"))
    eos = {"eos_token": "<|endoftext|>" if kind == "pythia" else "</s>"}
    name = "PreTrainedTokenizerFast" if kind == "pythia" else "LlamaTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **eos}))
    tokenizer, decoder = Tokenizer.load(tmp_path), Decoder.load(tmp_path)
    assert decoder.special_ids == tokenizer.special_ids
    stories = (shared / "tinystories/validation_head.txt").read_text()[:20000]
    texts = [
        "Ünïcödé 日本語 🦙🦙 naïve",
        " leading blank",
        "tab\tand  many     blanks\n\n    code()",
        "aaaaaaa",
        stories,
    ]
    reader: Any = Samples([[*tokenizer.continuations([text])[0], tokenizer.eos] for text in texts])
    decoded = [tokenizer.decode(reader.tokens(i).tolist()) for i in range(reader.n)]
    rng = random.Random(1)
    pieces = ["日", "本語 🦙", "🦙", "aa", "aaaaaa", "  many  ", "\n\n  ", "é 日"]
    pieces += [stories[k : k + rng.randrange(1, 50)] for k in (rng.randrange(len(stories) - 50) for _ in range(20))]
    for piece in pieces:
        matches = {hit.sample_id: hit.count for hit in search.search(reader, decoder, piece)}
        expected = {i: sum(d.startswith(piece, k) for k in range(len(d))) for i, d in enumerate(decoded)}
        assert matches == {i: count for i, count in expected.items() if count}, piece


def test_a_tokenizer_with_other_bytes_is_refused(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    assert history.tokenizer is not None
    table = search.token_bytes(history.tokenizer)
    monkeypatch.setattr(search, "token_bytes", lambda _: [token.swapcase() for token in table])
    with pytest.raises(UserError, match="sample 0 decodes to other bytes"):
        search.search(history.reader, history.tokenizer, "the")
