"""Measures of texts that need no model and no network: length, variety, readability, sentiment.

Words are runs of letters and digits, with hyphens and apostrophes inside; case does not count. A sentence ends with
``.``, ``!``, ``?`` or ``…``; what follows the last end is a sentence, too, so that a text cut off in one still has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wellread.config import CONFIGS
from wellread.errors import UserError

NAMES = (
    "words",
    "sentence_length",
    "type_token_ratio",
    "flesch_kincaid",
    "gunning_fog",
    "sentiment",
    "subjectivity",
)
"""Columns of `measure`, in their order."""
WORD_LIST_RATE = "word_list_rate"
"""The column after them, where a list of words is given."""

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_END = re.compile(r"(?<!\bmr)(?<!\bms)(?<!\bdr)(?<!\bmrs)[.!?…]+(?![^\W_])")
_VOWELS = re.compile(r"[aeiouyàáâäåæèéêëìíîïòóôöøùúûü]+")
_SILENT = re.compile(r"(?:(?<=[^aeiouytd])ed|(?<=[^aeiouylsxzcgh])es|(?<=[^aeiouyl])e|(?<=[aeiouy]l)es?)$")
_ENDINGS = re.compile(r"(?:es|ed|ing)$")
_TOKEN = re.compile(r"n't\b|[^\W_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*|!")
_NEGATIONS = frozenset({"no", "not", "n't", "never"})
_CACHED_WORDS = 1 << 18


def measure(texts: Sequence[str], *, words: Iterable[str] = (), sentiment: bool = True) -> NDArray[np.float32]:
    """Measure texts.

    - words: how many.
    - sentence_length: words per sentence.
    - type_token_ratio: different words / words.
    - flesch_kincaid: 0.39 words / sentences + 11.8 syllables / words - 15.59, a school grade (Kincaid et al. 1975).
    - gunning_fog: 0.4 (words / sentences + 100 complex words / words), complex from three syllables on, the endings
      -es, -ed and -ing not counted (Gunning 1952; names are not told from other words).
    - sentiment (-1 to 1) and subjectivity (0 to 1): mean over the words that the lexicon of pattern.en knows, with its
      rules for negations and adverbs (configs/data/sentiment.tsv; De Smedt and Daelemans 2012).
    - word_list_rate: words of a given list / words.

    Parameters
    ----------
    texts : sequence of str
    words : iterable of str
        The list of words; the last column is there only if it is not empty.
    sentiment : bool
        Whether to measure sentiment and subjectivity; else they are left 0.

    Returns
    -------
    (texts, 7 or 8) float32
        Columns as in `NAMES`, then `WORD_LIST_RATE`. All are 0 for a text without words.
    """
    listed = frozenset(word.lower() for word in words)
    found = np.zeros((len(texts), len(NAMES) + bool(listed)), dtype=np.float32)
    lexicon = _lexicon()
    for row, text in zip(found, texts, strict=True):
        lower = text.lower().replace("’", "'")
        spoken = _WORD.findall(lower)
        if not spoken:
            continue
        n, sentences = len(spoken), _sentences(lower)
        syllables, long = _syllables_of(spoken)
        row[:5] = (
            n,
            n / sentences,
            len(set(spoken)) / n,
            0.39 * n / sentences + 11.8 * syllables / n - 15.59,
            0.4 * (n / sentences + 100 * long / n),
        )
        if sentiment:
            row[5:7] = _sentiment(_TOKEN.findall(lower), lexicon)
        if listed:
            row[7] = sum(map(listed.__contains__, spoken)) / n
    return found


def read_words(path: Path) -> list[str]:
    """Read a list of words, one a line; blank lines and those that begin with # are passed over.

    Raises
    ------
    UserError
        When the file cannot be read, holds no word, or a line that no word of a text can equal.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"--word_list {path}: cannot be read ({reason})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        word = line.strip().lower().replace("’", "'")
        if word and not word.startswith("#"):
            if not _WORD.fullmatch(word):
                raise UserError(f"--word_list {path} line {number}: {line.strip()!r} is not a single word")
            found.append(word)
    if not found:
        raise UserError(f"--word_list {path}: holds no word; write one a line")
    return found


def _sentences(lower: str) -> int:
    return sum(1 for piece in _END.split(lower) if _WORD.search(piece))


def syllables(word: str) -> int:
    """Syllables of a lowercase word, by rule: groups of vowels, without a silent e, es or ed at the end; at least 1."""
    return max(1, len(_VOWELS.findall(_SILENT.sub("", word))))


class _Counted(dict[str, tuple[int, int]]):
    """Word -> syllables, and 1 if it is complex; worked out once for each word."""

    def __missing__(self, word: str) -> tuple[int, int]:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        stem = _ENDINGS.sub("", word)
        self[word] = found = (syllables(word), int(syllables(stem) >= 3 if stem else 0))
        return found


_counted = _Counted()


def _syllables_of(words: Sequence[str]) -> tuple[int, int]:
    """Syllables and complex words among `words`."""
    pairs = [_counted[word] for word in words]
    return sum([pair[0] for pair in pairs]), sum([pair[1] for pair in pairs])


@cache
def _lexicon() -> dict[str, tuple[float, float, float, bool]]:
    """Word -> polarity, subjectivity, intensity, whether it is an adverb."""
    found = {}
    for line in (CONFIGS / "data" / "sentiment.tsv").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            word, polarity, subjectivity, intensity, adverb = line.split("\t")
            found[word] = (float(polarity), float(subjectivity), float(intensity), adverb == "1")
    return found


def _sentiment(tokens: Sequence[str], lexicon: dict[str, tuple[float, float, float, bool]]) -> tuple[float, float]:
    """Mean polarity and subjectivity of the known words: the rules of pattern.en's ``Sentiment.assessments``.

    An adverb multiplies the word after it ("very good"), a negation takes -0.5 times it ("not good"), an exclamation
    mark makes the word before it stronger by a quarter.
    """
    found: list[list[float]] = []  # polarity, subjectivity, intensity, sign
    modifier, negation = "", False
    for token in tokens:
        known = lexicon.get(token)
        if known is None:
            if token in _NEGATIONS:
                negation = True
            elif not (negation or modifier or token == "!"):
                continue
            elif negation and len(token) > 1:
                negation = False
            if negation and modifier.endswith("ly"):
                found[-1][3] = -1
                negation = False
            elif modifier and len(token) > 2:
                modifier = ""
            if token == "!" and found:
                found[-1][0] = max(-1.0, min(found[-1][0] * 1.25, 1.0))
            continue
        polarity, subjectivity, intensity, adverb = known
        if modifier:
            last = found[-1]
            last[:3] = (
                max(-1.0, min(polarity * last[2], 1.0)),
                max(-1.0, min(subjectivity * last[2], 1.0)),
                intensity,
            )
        else:
            found.append([polarity, subjectivity, intensity, 1])
        if negation:
            found[-1][2:] = (1 / found[-1][2], -1)
        modifier, negation = token if adverb else "", token in _NEGATIONS
    if not found:
        return 0.0, 0.0
    polarity = sum([p * -0.5 if sign < 0 else p for p, _, _, sign in found])
    return polarity / len(found), sum([each[1] for each in found]) / len(found)
