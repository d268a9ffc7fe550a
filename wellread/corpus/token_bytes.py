"""The bytes of each token of a tokenizer, for searching texts in tokens without decoding them."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from numpy.typing import NDArray

from wellread.corpus.decoder import Decoder
from wellread.corpus.read import SampleReader
from wellread.errors import UserError


def token_bytes(tokenizer: Decoder) -> list[bytes]:
    """Bytes of each token id; the bytes of a sample are the concatenated bytes of its tokens.

    Two kinds of tokenizers are supported: byte-level BPE (GPT-2, GPT-NeoX, Pythia, Llama 3) and SentencePiece with or
    without byte fallback (Llama 2, Mistral, T5).

    Raises
    ------
    UserError
        When the tokenizer is of another kind.
    """
    backend = tokenizer.backend
    tokens: list[str | None] = [backend.id_to_token(i) for i in range(tokenizer.size)]
    decoders = _decoders(backend)
    if "ByteLevel" in decoders:
        alphabet = _byte_level_alphabet()
        return [_byte_level(token or "", alphabet) for token in tokens]
    if decoders & {"ByteFallback", "Metaspace"} or (not decoders and any("▁" in (token or "") for token in tokens)):
        return [_sentencepiece(token or "") for token in tokens]
    raise UserError(
        f"--text: the decoder of this tokenizer ({', '.join(sorted(decoders)) or 'none'}) is not supported; "
        "only byte-level BPE and SentencePiece can be searched"
    )


def _decoders(backend: Any) -> set[str]:
    """Types of all steps of a tokenizer's decoder; empty without a decoder."""
    decoder = _settings(backend.decoder)
    return {step["type"] for step in decoder.get("decoders", [decoder]) if step}


def _settings(component: Any) -> dict[str, Any]:
    """Settings of a decoder or normalizer, as in tokenizer.json; empty for None."""
    settings: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return settings


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that each character in GPT-2's vocabulary represents (bytes_to_unicode of its encoder.py, inverted)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in set(printable)]
    codes = [*printable, *range(256, 256 + len(unprintable))]
    return {chr(code): byte for code, byte in zip(codes, [*printable, *unprintable], strict=True)}


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()  # an added token, stored as plain text


def _sentencepiece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def normalized(text: str, tokenizer: Decoder) -> str:
    """The text in the Unicode normalization form of the tokenizer, e.g. NFC for GPT-NeoX."""
    normalizer = _settings(tokenizer.backend.normalizer)
    for step in normalizer.get("normalizers", [normalizer]):
        if step.get("type") in ("NFC", "NFD", "NFKC", "NFKD"):
            text = unicodedata.normalize(step["type"], text)
    return text


def decode(table: list[bytes], tokens: NDArray[Any]) -> str:
    """Text of `tokens` according to the table of `token_bytes`; incomplete characters become U+FFFD."""
    return b"".join(table[token] for token in tokens.tolist()).decode(errors="replace")


def check(table: list[bytes], tokenizer: Decoder, reader: SampleReader, sample_id: int) -> None:
    """Check that the table decodes one sample to the same text as the tokenizer.

    Two differences are allowed: SentencePiece removes the space at the start of a text, and it writes one U+FFFD for
    each byte of an incomplete character.

    Raises
    ------
    UserError
        When the texts differ.
    """
    tokens = reader.tokens(sample_id)
    actual, expected = (
        re.sub("\ufffd+", "\ufffd", text) for text in (decode(table, tokens), tokenizer.decode(tokens.tolist()))
    )
    if expected not in (actual, actual.removeprefix(" ")):
        raise UserError(
            f"--text: sample {sample_id} decodes to other bytes than with its tokenizer, so a search would miss texts; "
            "use the tokenizer that the corpus was compiled with"
        )
