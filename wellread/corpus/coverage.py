"""Characters of texts that a tokenizer cannot represent: it deletes them, or writes its unknown token instead.

A tokenizer of bytes, or with a token for each byte, represents all texts. Others are compared with the texts, because
offsets of tokens do not show what was deleted: they count from the characters that are left. What a normalizer or a
pre-tokenizer removes, such as spaces between words, does not count: the model of the tokenizer never receives it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

DELETED = "characters_without_token"
UNKNOWN = "unknown_tokens"
BYTE_FALLBACK = '"byte_fallback":true'
"""In a serialized tokenizer that encodes a character without a token as its bytes."""
LISTED = 40
"""Most characters of an example."""


class Loss(NamedTuple):
    """What a text loses."""

    reason: str
    """`DELETED` or `UNKNOWN`: how it is counted in a corpus."""
    n: int
    example: str


class Coverage:
    """Finds what a tokenizer loses of a text."""

    def __init__(self, backend: Any, serialized: str) -> None:
        """Take a `tokenizers.Tokenizer` that encodes special tokens as plain text, and the same as JSON."""
        self._backend = backend
        self._usual = Counter(self._received("aa"))
        self._represented: dict[str, bool] = {}
        affixes = (getattr(backend.model, name, None) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        self._prefix, self._suffix = (affix or "" for affix in affixes)
        self._falls_back = BYTE_FALLBACK in serialized
        kind = type(backend.model).__name__
        self.by_character = kind == "Unigram" or (kind == "BPE" and not (self._prefix or self._suffix))
        """Whether a text is represented if each of its characters is."""
        self.unknown = _unknown(backend, serialized)
        """Id of the unknown token; None for a tokenizer that deletes what it does not know."""
        self._added = [token.content for token in backend.get_added_tokens_decoder().values() if not token.special]
        self.is_complete = self.by_character and _has_all_bytes(backend, serialized)
        """Whether all texts are represented, so that none needs to be checked."""

    def losses(self, text: str) -> Iterator[Loss]:
        """What a text loses, by reason."""
        if self.is_complete:
            return
        missing = {character for character in {*text} if not self._represents(character)}
        if self.unknown is not None and (missing or not self.by_character):
            yield from self._unknown_tokens(text)
        elif missing:
            for token in self._added:  # they are taken out of the text before its other characters are looked up
                text = text.replace(token, "")
            if characters := [character for character in text if character in missing]:
                yield Loss(DELETED, len(characters), f"{characters[0]!r} (U+{ord(characters[0]):04X})")

    def _unknown_tokens(self, text: str) -> Iterator[Loss]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        if n := encoding.ids.count(self.unknown):
            start, end = encoding.offsets[encoding.ids.index(self.unknown)]
            yield Loss(UNKNOWN, n, repr(text[start:end][:LISTED]))

    def _represents(self, character: str) -> bool:
        """Whether the model has a token for all that it receives of a character within a text."""
        if (answer := self._represented.get(character)) is None:
            received = Counter(self._received(f"a{character}a")) - self._usual
            answer = self._represented[character] = all(map(self._is_known, received))
        return answer

    def _received(self, text: str) -> str:
        """What the model receives of a text."""
        if normalizer := self._backend.normalizer:
            text = normalizer.normalize_str(text)
        if splitter := self._backend.pre_tokenizer:
            text = "".join(piece for piece, _ in splitter.pre_tokenize_str(text))
        return text

    def _is_known(self, character: str) -> bool:
        id_of = self._backend.token_to_id
        forms = {p + character + s for p in ("", self._prefix) for s in ("", self._suffix)}
        if any(id_of(form) is not None for form in forms):
            return True
        return self._falls_back and all(id_of(_byte(byte)) is not None for byte in character.encode())


def _byte(value: int) -> str:
    """Token of a byte, for a character without a token."""
    return f"<0x{value:02X}>"


def _unknown(backend: Any, serialized: str) -> int | None:
    if type(backend.model).__name__ == "Unigram":  # its class does not have the id
        match = re.search(r'"model":\{"type":"Unigram","unk_id":(\d+)', serialized)
        return int(match[1]) if match else None
    token = getattr(backend.model, "unk_token", None)
    return None if token is None else backend.token_to_id(token)


def _has_all_bytes(backend: Any, serialized: str) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    id_of = backend.token_to_id
    if BYTE_FALLBACK in serialized and all(id_of(_byte(value)) is not None for value in range(256)):
        return True
    stages = [stage.__getstate__() for stage in (backend.normalizer, backend.pre_tokenizer) if stage]
    return any(b'"ByteLevel"' in stage for stage in stages) and all(
        id_of(character) is not None for character in ByteLevel.alphabet()
    )
