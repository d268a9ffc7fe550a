"""Stories that are made up: always the same, never alike, no phrase in many of them."""

import hashlib
import re
from collections import Counter

from wellread.data.sets import documents
from wellread.data.sources import generated

MOST = 0.02
"""Share of the stories that may hold the same 12 words in a row."""


def test_the_same_stories_everywhere() -> None:
    """A change of the grammar changes them; then raise `VERSION`, and this."""
    text = "\n".join(map(generated.story, range(300)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a989ef3375a7b34a"
    assert generated.story(0).startswith("A long time ago, a ")


def test_no_phrase_is_in_many_stories() -> None:
    n = documents("stories").generated or 0
    found = [generated.story(i) for i in range(n)]
    seen: Counter[str] = Counter()
    for story in found:
        words = story.split()
        seen.update({" ".join(words[i : i + 12]) for i in range(len(words) - 11)})
    phrase, most = seen.most_common(1)[0]
    print(f"{most / n:.2%} of {n:,} stories hold: {phrase}")
    assert most / n <= MOST
    assert len(set(found)) == n == 10_000
    assert sum(map(len, found)) > 5_000_000
    assert not [story for story in found if re.search(r"[{}|_]|  |\b[Aa] [aeiou]|\.\.", story)]


def test_a_story_begins_its_sentences_with_capitals() -> None:
    for i in range(200):
        assert not re.search(r"(?:\A|\n|[a-z][.!?] )[a-z]", generated.story(i))
