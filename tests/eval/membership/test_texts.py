"""Samples in lower case, and the text that zlib compresses."""

from __future__ import annotations

import zlib

import numpy as np

from eval.membership.files import TextSamples
from eval.membership.texts import LowerCase, scored_text, zlib_bytes
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer

TEXTS = ["Once upon a time, Anna SAW a red ball.", "nothing to change here", "É"]


def test_lower_case_is_tokenized_again(corpus: Corpus) -> None:
    tokenizer = Tokenizer.load(corpus.tokenizer)
    lower = LowerCase(TextSamples(TEXTS, tokenizer, 128), 128, tokenizer=tokenizer)
    expected = TextSamples([text.lower() for text in TEXTS], tokenizer, 128)
    for i in range(3):
        assert lower.tokens(i).tolist() == expected.tokens(i).tolist()
        assert lower.targets(i).tolist() == expected.targets(i).tolist()
    assert lower.lengths(np.arange(3)).tolist() == expected.lengths(np.arange(3)).tolist()
    truncated = LowerCase(TextSamples(TEXTS, tokenizer, 128), 4, tokenizer=tokenizer)
    assert truncated.tokens(0).tolist() == expected.tokens(0).tolist()[:4]


def test_prompt_and_response_stay_apart(corpus: Corpus) -> None:
    tokenizer = Tokenizer.load(corpus.tokenizer)
    lower, decoder = LowerCase(corpus, corpus.longest, tokenizer=tokenizer), Decoder.load(corpus.tokenizer)
    for i in range(0, 40, 5):
        text = tokenizer.decode(corpus.tokens(i)[corpus.targets(i)].tolist())
        assert tokenizer.decode(lower.tokens(i)[lower.targets(i)].tolist()) == text.lower()
        assert not lower.targets(i)[0]
        scored = scored_text(corpus, i, decoder)
        assert scored == text.removesuffix("<|endoftext|>")
        assert zlib_bytes(corpus, np.array([i]), decoder).tolist() == [len(zlib.compress(scored.encode()))]
