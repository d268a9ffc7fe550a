"""Metrics of texts that need no model and no network: length, variety, readability, sentiment.

Words are sequences of letters and digits, with hyphens and apostrophes inside; case is ignored. A sentence ends with
``.``, ``!``, ``?`` or ``…``; the text after the last of them also counts as a sentence, for texts that are cut off.
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
from wellread.text_io import read_text

NAMES = (
    "words",
    "sentence_length",
    "type_token_ratio",
    "flesch_kincaid",
    "gunning_fog",
    "sentiment",
    "subjectivity",
)
"""Columns of `measure`, in order."""
WORD_LIST_RATE = "word_list_rate"
"""Additional last column if a word list is given."""

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

    - words: number of words.
    - sentence_length: words per sentence.
    - type_token_ratio: different words / words.
    - flesch_kincaid: 0.39 words / sentences + 11.8 syllables / words - 15.59, a school grade (Kincaid et al. 1975).
    - gunning_fog: 0.4 (words / sentences + 100 complex words / words); a word is complex if it has three or more
      syllables without its ending -es, -ed or -ing (Gunning 1952; names are not excluded).
    - sentiment (-1 to 1) and subjectivity (0 to 1): mean over the words in the lexicon of pattern.en, with its
      rules for negations and adverbs (configs/data/sentiment.tsv; De Smedt and Daelemans 2012).
    - word_list_rate: words that are in the word list / words.

    Parameters
    ----------
    texts : sequence of str
    words : iterable of str
        The word list; the last column exists only if it is not empty.
    sentiment : bool
        Whether to measure sentiment and subjectivity; otherwise they are 0.

    Returns
    -------
    (texts, 7 or 8) float32
        Columns as in `NAMES`, then `WORD_LIST_RATE`. All are 0 for a text without words.
    """
    listed = frozenset(word.lower() for word in words)
    values = np.zeros((len(texts), len(NAMES) + bool(listed)), dtype=np.float32)
    lexicon = _lexicon()
    for row, text in zip(values, texts, strict=True):
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
    return values


def read_words(path: Path) -> list[str]:
    """Read a word list, one word per line; empty lines and lines that begin with # are skipped.

    Raises
    ------
    UserError
        When the file cannot be read, contains no word, or a line is not a single word.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"--word_list {path}: cannot be read ({reason})") from None
    words = []
    for number, line in enumerate(lines, start=1):
        word = line.strip().lower().replace("’", "'")
        if word and not word.startswith("#"):
            if not _WORD.fullmatch(word):
                raise UserError(f"--word_list {path} line {number}: {line.strip()!r} is not a single word")
            words.append(word)
    if not words:
        raise UserError(f"--word_list {path}: contains no words; write one per line")
    return words


def _sentences(lower: str) -> int:
    return sum(1 for piece in _END.split(lower) if _WORD.search(piece))


def syllables(word: str) -> int:
    """Count the syllables of a lowercase word: groups of vowels, except a silent e, es or ed at the end; at least 1."""
    return max(1, len(_VOWELS.findall(_SILENT.sub("", word))))


class _Counted(dict[str, tuple[int, int]]):
    """Word -> (number of syllables, 1 if complex else 0); computed once for each word."""

    def __missing__(self, word: str) -> tuple[int, int]:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        stem = _ENDINGS.sub("", word)
        self[word] = counts = (syllables(word), int(syllables(stem) >= 3 if stem else 0))
        return counts


_counted = _Counted()


def _syllables_of(words: Sequence[str]) -> tuple[int, int]:
    """Total number of syllables, and number of complex words."""
    pairs = [_counted[word] for word in words]
    return sum([pair[0] for pair in pairs]), sum([pair[1] for pair in pairs])


@cache
def _lexicon() -> dict[str, tuple[float, float, float, bool]]:
    """Word -> polarity, subjectivity, intensity, whether it is an adverb."""
    entries = {}
    for line in (CONFIGS / "data" / "sentiment.tsv").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            word, polarity, subjectivity, intensity, adverb = line.split("\t")
            entries[word] = (float(polarity), float(subjectivity), float(intensity), adverb == "1")
    return entries


def _sentiment(tokens: Sequence[str], lexicon: dict[str, tuple[float, float, float, bool]]) -> tuple[float, float]:
    """Mean polarity and subjectivity of the words in the lexicon, by the rules of pattern.en's `Sentiment.assessments`.

    An adverb multiplies the polarity of the next word by its intensity ("very good"), a negation multiplies it by -0.5
    ("not good"), and an exclamation mark multiplies the polarity of the previous word by 1.25.
    """
    assessed: list[list[float]] = []  # polarity, subjectivity, intensity, sign
    modifier, negation = "", False
    for token in tokens:
        entry = lexicon.get(token)
        if entry is None:
            if token in _NEGATIONS:
                negation = True
            elif not (negation or modifier or token == "!"):
                continue
            elif negation and len(token) > 1:
                negation = False
            if negation and modifier.endswith("ly"):
                assessed[-1][3] = -1
                negation = False
            elif modifier and len(token) > 2:
                modifier = ""
            if token == "!" and assessed:
                assessed[-1][0] = max(-1.0, min(assessed[-1][0] * 1.25, 1.0))
            continue
        polarity, subjectivity, intensity, adverb = entry
        if modifier:
            last = assessed[-1]
            last[:3] = (
                max(-1.0, min(polarity * last[2], 1.0)),
                max(-1.0, min(subjectivity * last[2], 1.0)),
                intensity,
            )
        else:
            assessed.append([polarity, subjectivity, intensity, 1])
        if negation:
            assessed[-1][2:] = (1 / assessed[-1][2], -1)
        modifier, negation = token if adverb else "", token in _NEGATIONS
    if not assessed:
        return 0.0, 0.0
    polarity = sum([p * -0.5 if sign < 0 else p for p, _, _, sign in assessed])
    return polarity / len(assessed), sum([each[1] for each in assessed]) / len(assessed)
