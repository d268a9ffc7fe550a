"""The longest span of a text that occurs in samples, by brute force."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 4


def longest_span(text: Sequence[int], samples: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest span of `text`, of at least four, that occurs in one of the samples; 0 without one."""
    spans = [text[a:b] for a in range(len(text)) for b in range(a + SHORTEST, len(text) + 1)]
    return max((len(span) for span in spans if any(_occurs(span, tokens) for tokens in samples)), default=0)


def _occurs(span: Sequence[int], tokens: Sequence[int]) -> bool:
    return any(tokens[i : i + len(span)] == span for i in range(len(tokens) - len(span) + 1))
