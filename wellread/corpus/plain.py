"""Changed copies of `tokenizers.Tokenizer`, for texts in which special tokens are plain text, and what one adds."""

from __future__ import annotations

import json
from typing import Any

PROBES = ("a", "0")
"""Texts that have tokens in almost all tokenizers."""
_SIGNS_OF_FIRST_SPACE = ('"Prepend"', '"Metaspace"', '"add_prefix_space":true')
"""Each serialized tokenizer that puts a space before a text has one of these; this search avoids parsing it (0.2 s)."""


def copied(serialized: str) -> Any:
    """A copy that encodes special tokens in a text as plain text, without truncation and padding."""
    from tokenizers import Tokenizer as Backend

    copy = Backend.from_str(serialized)
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def without_first_space(serialized: str) -> str | None:
    """The serialized tokenizer without a space before texts; None when it does not put one."""
    if not any(sign in serialized for sign in _SIGNS_OF_FIRST_SPACE):
        return None
    tokenizer = json.loads(serialized)
    stages = ("normalizer", "pre_tokenizer")
    before = [json.dumps(tokenizer[stage]) for stage in stages]

    def prepends(part: Any) -> bool:
        return isinstance(part, dict) and part.get("type") == "Prepend"

    def visit(part: Any) -> None:
        if isinstance(part, list):
            part[:] = [each for each in part if not prepends(each)]
            for each in part:
                visit(each)
        elif isinstance(part, dict):
            if part.get("type") == "Metaspace":
                part["prepend_scheme"] = "never"
            elif part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
            for each in part.values():
                visit(each)

    for stage in stages:
        visit(tokenizer[stage])
        if prepends(tokenizer[stage]):
            tokenizer[stage] = None
    changed = before != [json.dumps(tokenizer[stage]) for stage in stages]
    return json.dumps(tokenizer) if changed else None


def added(plain: Any) -> tuple[list[int], int]:
    """Token ids that a tokenizer puts before each text, and the number of those after it."""
    probes = (encoding for text in (*PROBES, *plain.get_vocab()) for encoding in _encoded(plain, text))
    encoding = next((each for each in probes if 0 in each.special_tokens_mask), None)
    if encoding is None:  # no text has a token
        return [], 0
    special = encoding.special_tokens_mask
    return list(encoding.ids[: special.index(0)]), special[::-1].index(0)


def _encoded(plain: Any, text: str) -> list[Any]:
    """A list of the encoding of a text, or an empty list if it contains characters for which there is no token."""
    try:
        return [plain.encode(text, add_special_tokens=True)]
    except Exception:  # the package raises no more specific type
        return []
