"""Synthetic stories: deterministic, all different, without frequent phrases."""

import hashlib
import re
from collections import Counter

from wellread.data.sets import documents
from wellread.data.sources import generated

MOST = 0.02
"""Maximum fraction of the stories that contain the same sequence of 12 words."""


def test_the_same_stories_everywhere() -> None:
    """Fails when the grammar changes; then raise `VERSION` and update the hash."""
    text = "\n".join(map(generated.story, range(300)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a989ef3375a7b34a"
    assert generated.story(0).startswith("A long time ago, a ")


def test_no_phrase_is_in_many_stories() -> None:
    n = documents("stories").generated or 0
    stories = [generated.story(i) for i in range(n)]
    counts: Counter[str] = Counter()
    for story in stories:
        words = story.split()
        counts.update({" ".join(words[i : i + 12]) for i in range(len(words) - 11)})
    phrase, most = counts.most_common(1)[0]
    print(f"{most / n:.2%} of {n:,} stories contain: {phrase}")
    assert most / n <= MOST
    assert len(set(stories)) == n == 10_000
    assert sum(map(len, stories)) > 5_000_000
    assert not [story for story in stories if re.search(r"[{}|_]|  |\b[Aa] [aeiou]|\.\.", story)]


def test_a_story_begins_its_sentences_with_capitals() -> None:
    for i in range(200):
        assert not re.search(r"(?:\A|\n|[a-z][.!?] )[a-z]", generated.story(i))
