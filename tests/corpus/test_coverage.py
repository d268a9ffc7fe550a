"""What tokenizers lose of a text: nothing for bytes, else deleted characters or unknown tokens."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wellread.corpus.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?.▁"
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def vocab(tokens: Any) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def bpe(tokens: Any = LETTERS, **settings: Any) -> Backend:
    backend = Backend(models.BPE(vocab([*tokens, *filter(None, [settings.get("unk_token")])]), [], **settings))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


def byte_level(tokens: Any) -> Backend:
    backend = Backend(models.BPE(vocab(tokens), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def unigram(**settings: Any) -> Backend:
    backend = Backend(models.Unigram([("<unk>", 0.0), *((each, -1.0) for each in (*LETTERS, *BYTES))], 0, **settings))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


def words(model: Any) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def with_normalizer(normalizer: Any) -> Backend:
    backend = bpe()
    backend.normalizer = normalizer
    return backend


def with_added_token() -> Backend:
    backend = bpe()
    backend.add_tokens(["Zürich"])
    return backend


def losses(backend: Backend, *texts: str) -> list[tuple[str, int, str]]:
    backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    return [(loss.reason, loss.n, loss.example) for text in texts for loss in tokenizer.losses(text)]


DELETED, UNKNOWN = "characters_without_token", "unknown_tokens"


@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [
        (bpe, "Name a Zürich über 東京?", [(DELETED, 4, "'ü' (U+00FC)")]),
        (bpe, "Name a\nline", [(DELETED, 1, r"'\n' (U+000A)")]),
        (bpe, "Name a  bird </s>", [(DELETED, 3, "'<' (U+003C)")]),  # a special token is plain text
        (with_added_token, "Zürich", []),
        (with_added_token, "Zürich über", [(DELETED, 1, "'ü' (U+00FC)")]),
        (lambda: bpe(LETTERS.replace("▁", "")), "a b", [(DELETED, 1, "' ' (U+0020)")]),
        (lambda: with_normalizer(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), "über", []),
        (lambda: with_normalizer(normalizers.Strip()), "  a b \n", [(DELETED, 1, r"'\n' (U+000A)")]),
        (lambda: with_normalizer(normalizers.Replace("ü", "")), "über", []),
        (lambda: bpe(unk_token="<unk>"), "Zürich 東京?", [(UNKNOWN, 3, "'ü'")]),
        (lambda: bpe([*LETTERS, *BYTES], byte_fallback=True), "Zürich 東京\n", []),
        (lambda: bpe([*LETTERS, *BYTES[:200]], byte_fallback=True), "É Á", []),
        (lambda: bpe([*LETTERS, *BYTES[:150]], byte_fallback=True), "ÉÁ", [(DELETED, 2, "'É' (U+00C9)")]),
        (lambda: byte_level(pre_tokenizers.ByteLevel.alphabet()), "Zürich 東京\n", []),
        (lambda: byte_level([*LETTERS, "Ġ", "Ã"]), "a ü", [(DELETED, 1, "'ü' (U+00FC)")]),
        (unigram, "Zürich über", [(UNKNOWN, 2, "'ü'")]),
        (lambda: unigram(byte_fallback=True), "Zürich über", []),
        (lambda: words(models.WordPiece(vocab(["[UNK]", "a", "##b"]), unk_token="[UNK]")), "ab Ab 東\n", [
            (UNKNOWN, 1, "'東'")
        ]),
        (lambda: words(models.WordLevel(vocab(["[UNK]", "a"]), unk_token="[UNK]")), "a bird a fish", [
            (UNKNOWN, 2, "'bird'")
        ]),
    ],
)  # fmt: skip
def test_losses(make: Callable[[], Backend], text: str, expected: list[tuple[str, int, str]]) -> None:
    assert losses(make(), text) == expected


def test_a_complete_tokenizer_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-level tokenizers, which most models have, cost nothing."""
    backend = byte_level(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!"))
    assert tokenizer._coverage.is_complete
    monkeypatch.setattr(tokenizer._coverage, "_represents", None)
    assert [*tokenizer.losses("東京")] == []
