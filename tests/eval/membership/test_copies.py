"""Copies between groups, against a comparison of all pairs."""

import numpy as np

from eval.membership.copies import SIMILAR, copies_between


def text_of(rng: np.random.Generator, n: int = 60) -> list[str]:
    return [f"w{word}" for word in rng.integers(0, 2000, n)]


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_exact_and_near_copies_by_hand() -> None:
    story = "Once there was a red ball that rolled down the hill and into the river where a duck sat on it all day"
    members = [story, "nothing like it", "short", "Short!"]
    nonmembers = [story.replace("all day", "all night"), "an unrelated line of text", "short"]
    copies = copies_between(members, nonmembers)
    assert copies.exact_members.tolist() == [False, False, True, False]
    assert copies.near_members.tolist() == [True, False, False, True]
    assert copies.exact_nonmembers.tolist() == [False, False, True]
    assert copies.near_nonmembers.tolist() == [True, False, False]
    assert copies.members.tolist() == [True, False, True, True]
    assert copies


def test_near_copies_are_those_of_a_comparison_of_all_pairs() -> None:
    """Texts with 0 to 12 of 60 words replaced: some are above 80% similarity, some below.

    A pair at the limit is missed with a probability of 5e-8 ((1 - 0.8**4)**32).
    """
    rng = np.random.default_rng(0)
    members, nonmembers = [text_of(rng) for _ in range(60)], []
    for i in range(60):
        words = list(members[i])
        for place in rng.choice(60, i // 5, replace=False):
            words[place] = "x"
        nonmembers.append(words)
    near = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) >= SIMILAR
        for a, b in zip(members, nonmembers, strict=True)
    ]
    copies = copies_between([" ".join(words) for words in members], [" ".join(words) for words in nonmembers])
    assert copies.members.tolist() == copies.nonmembers.tolist() == near
    assert copies.exact_members.sum() == 5
    assert 5 < sum(near) < 55


def test_a_shared_system_message_makes_no_copies() -> None:
    """60 and 60 chats with the same 150 words before 12 words of their own; one non-member has those of a member."""
    rng = np.random.default_rng(1)
    system = " ".join(text_of(rng, 150))
    members, nonmembers = ([f"{system} {' '.join(text_of(rng, 12))}" for _ in range(60)] for _ in range(2))
    nonmembers[5] = members[7] + "!"
    copies = copies_between(members, nonmembers)
    assert np.flatnonzero(copies.near_members).tolist() == [7]
    assert np.flatnonzero(copies.near_nonmembers).tolist() == [5]
    assert not copies.exact_members.any()
    same = copies_between([f"{system}."] * 30, [system] * 30)
    assert not same  # all of their words are common


def test_texts_without_words_have_no_near_copies() -> None:
    copies = copies_between(["!!! ???", "..."], ["*** ---", "..."])
    assert not copies.near_members.any()
    assert copies.exact_members.tolist() == [False, True]


def test_without_texts_there_are_no_copies() -> None:
    copies = copies_between(["a text"], [])
    assert not copies
    assert copies.members.tolist() == [False]
