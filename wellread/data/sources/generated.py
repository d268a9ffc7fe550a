"""Stories for small children, made up by a grammar: the same ones everywhere and always, and no two alike.

The grammar is configs/data/story_grammar.txt: who takes part, ten kinds of plot, dialogue, weather, endings and morals.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

from wellread.config import CONFIGS

VERSION = 1
"""Raise it when a number begins to give another story."""
FILE = CONFIGS / "data" / "story_grammar.txt"
MASK = 2**64 - 1
PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
_PLACE = re.compile(r"{(\w+)}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_FIRST = re.compile(r"(?:\A|[.!?] |\n)[a-z]")


def story(number: int) -> str:
    """Make up one story.

    Parameters
    ----------
    number : int
        Which story: equal numbers give equal stories, different ones different stories.
    """
    return _Teller(number).tell()


class _Teller:
    """Choices of one story: splitmix64 from a hash of its number, which no library's next version changes."""

    def __init__(self, number: int) -> None:
        seed = hashlib.blake2b(f"{VERSION}:{number}".encode(), digest_size=8).digest()
        self._state = int.from_bytes(seed, "little")
        grammar = _grammar()
        self._cast, self._rules = grammar["cast"], grammar["rules"]
        self._known: dict[str, str] = {}

    def tell(self) -> str:
        self._choose_characters()
        text = self._filled("{story}")
        text = _ARTICLE.sub(r"\1n ", re.sub(" {2,}", " ", text))
        text = re.sub(r'\."(?= [a-z])', ',"', text)
        return _FIRST.sub(lambda found: found[0][:-1] + found[0][-1].upper(), text)

    def _one(self, of: Sequence[str]) -> str:
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK
        x = self._state
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
        return of[((x ^ x >> 31) >> 32) * len(of) >> 32]

    def _choose_characters(self) -> None:
        cast, known = self._cast, self._known
        for prefix, name in (("", "hero"), ("f", "friend")):
            kind = self._one(("girl", "boy"))
            names = [each for each in cast[f"{kind}s"] if each != known.get("hero")]
            known[name] = self._one(names)
            known[f"{prefix}who"] = self._one((kind, self._one(cast["animals"])))
            for key, pronoun in zip(("she", "her", "hers"), PRONOUNS[kind], strict=True):
                known[prefix + key] = pronoun
                known[(prefix + key).capitalize()] = pronoun.capitalize()
            known[f"{prefix}trait"] = self._one(cast["traits"])
        known["helper"] = self._one(cast["helper"])
        known["thehelper"] = re.sub("^an? ", "the ", known["helper"])
        known["trait2"] = self._one([each for each in cast["traits"] if each != known["trait"]])

    def _filled(self, text: str) -> str:
        return _PLACE.sub(lambda found: self._expanded(found[1]), text)

    def _expanded(self, name: str) -> str:
        """What stands for a name: of the cast the same in the whole story, of a rule one way anew."""
        if name in self._known:
            return self._known[name]
        if name in self._rules:
            return self._filled(self._one(self._rules[name]))
        self._known[name] = self._filled(self._one(self._cast[name]))
        return self._known[name]


Grammar = dict[str, dict[str, list[str]]]


@cache
def _grammar() -> Grammar:
    """Section -> name -> ways."""
    found: Grammar = {}
    ways: list[str] = []
    text = re.sub(r"\n +(?=\S)", " ", FILE.read_text(encoding="utf-8"))  # lines that go on
    for line in text.splitlines():
        if line.startswith("["):
            section = found[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            name, _, rest = line.partition(":")
            ways = section[name] = []
            ways += [way.strip().replace("\\n", "\n") for way in rest.split(" |") if way.strip()]
    return found
