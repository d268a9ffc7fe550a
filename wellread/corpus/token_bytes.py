"""The bytes that each token of a tokenizer stands for: what makes tokens searchable without decoding them."""

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
    """Bytes that each token id stands for; those of a sample are their concatenation.

    Two kinds are known: byte-level BPE (GPT-2, GPT-NeoX, Pythia, Llama 3) and SentencePiece with or without byte
    fallback (Llama 2, Mistral, T5).

    Raises
    ------
    UserError
        When the tokenizer decodes in some other way.
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
        f"--text: a tokenizer that decodes by {', '.join(sorted(decoders)) or 'rules of its own'} cannot be searched; "
        "byte-level BPE and SentencePiece can"
    )


def _decoders(backend: Any) -> set[str]:
    """Types of all steps of a tokenizer's decoder; empty for none."""
    decoder = _settings(backend.decoder)
    return {step["type"] for step in decoder.get("decoders", [decoder]) if step}


def _settings(component: Any) -> dict[str, Any]:
    """A decoder or normalizer as tokenizer.json has it; empty for none."""
    settings: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return settings


def _byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabulary (bytes_to_unicode of its encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shown = [*printable, *range(256, 256 + len(others))]
    return {chr(code): byte for code, byte in zip(shown, [*printable, *others], strict=True)}


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()  # an added token, which stands for itself


def _sentencepiece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def normalized(text: str, tokenizer: Decoder) -> str:
    """The text in the Unicode form that the tokenizer brings texts into, e.g. NFC for GPT-NeoX."""
    normalizer = _settings(tokenizer.backend.normalizer)
    for step in normalizer.get("normalizers", [normalizer]):
        if step.get("type") in ("NFC", "NFD", "NFKC", "NFKD"):
            text = unicodedata.normalize(step["type"], text)
    return text


def decode(table: list[bytes], tokens: NDArray[Any]) -> str:
    """Text of `tokens` by the table, broken characters as U+FFFD."""
    return b"".join(table[token] for token in tokens.tolist()).decode(errors="replace")


def check(table: list[bytes], tokenizer: Decoder, reader: SampleReader, sample_id: int) -> None:
    """Compare the table's decoding of one sample with the tokenizer's own.

    SentencePiece drops the blank that opens a text, and counts the bytes of a broken character one by one: these
    differences are known and allowed.

    Raises
    ------
    UserError
        When they differ.
    """
    tokens = reader.tokens(sample_id)
    ours, theirs = (re.sub("\ufffd+", "\ufffd", t) for t in (decode(table, tokens), tokenizer.decode(tokens.tolist())))
    if theirs not in (ours, ours.removeprefix(" ")):
        raise UserError(
            f"--text: sample {sample_id} decodes to other bytes than its tokenizer gives, so a search would miss "
            "texts; give the tokenizer that the corpus was made with"
        )
