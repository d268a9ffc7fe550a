"""Samples of small stories: the tokens and stories of each window; trainable and sealed stories are never mixed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wellread.corpus.shards import Sample
from wellread.corpus.windows import Document, fill

BOS = 1


def story(row: int, *tokens: int, sealed: bool = False) -> Document:
    return Document(row, np.array(tokens, dtype=np.uint32), id=-row, sealed=sealed, category=f"c{row}")


def listed(sample: Sample) -> tuple[list[int], list[int], bool]:
    return [int(token) for token in sample.tokens], [sample.row, *sample.further_rows], sample.sealed


STORIES = [story(1, 5, 6, 7), story(3, 8, 9, sealed=True), story(4, 10, 11), story(7, 12, 13, 14, 15, 16)]


def test_stream() -> None:
    """Trainable: 1 5 6 7 | 1 10 11 | 1 12 13 14 15 16 | 1 in windows of five tokens that share one token."""
    shard = fill(STORIES, bos=BOS, seq_len=5, packing="stream")
    assert [listed(sample) for sample in shard.samples] == [
        ([1, 5, 6, 7, 1], [1], False),
        ([1, 10, 11, 1, 12], [4, 7], False),
        ([12, 13, 14, 15, 16], [7], False),
        ([16, 1], [7], False),
        ([1, 8, 9, 1], [3], True),
    ]
    assert [sample.spans for sample in shard.samples] == [[(1, 5)], [(1, 5)], [(1, 5)], [(1, 2)], [(1, 4)]]
    assert [sample.document for sample in shard.samples] == [-1, -4, -7, -7, -3]
    assert not shard.counts


def test_one_story_per_sample() -> None:
    shard = fill(STORIES, bos=BOS, seq_len=5, packing="story")
    assert [listed(sample) for sample in shard.samples] == [
        ([1, 5, 6, 7, 1], [1], False), ([1, 8, 9, 1], [3], True), ([1, 10, 11, 1], [4], False),
        ([1, 12, 13, 14, 15], [7], False), ([15, 16, 1], [7], False),
    ]  # fmt: skip
    assert dict(shard.counts) == {"story_split": 1}
    truncated = fill(STORIES, bos=BOS, seq_len=5, packing="story", long_stories="cut")
    assert [listed(sample)[0] for sample in truncated.samples][3:] == [[1, 12, 13, 14, 15]]
    assert dict(truncated.counts) == {"story_cut": 1}
    assert {sample.category for sample in truncated.samples} == {"c1", "c3", "c4", "c7"}


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=20),
    seq_len=st.integers(4, 40),
    packing=st.sampled_from(["stream", "story"]),
)
def test_every_token_carries_loss_once(lengths: list[tuple[int, bool]], seq_len: int, packing: str) -> None:
    """All tokens and ends of stories carry loss once; samples are not too long, and trainable or sealed, not mixed."""
    first, stories = 2, []
    for row, (n, sealed) in enumerate(lengths):
        stories.append(story(row, *range(first, first + n), sealed=sealed))
        first += n
    owner = {int(token): each for each in stories for token in each.tokens}
    shard = fill(stories, bos=BOS, seq_len=seq_len, packing=packing)  # type: ignore[arg-type]
    targets = [int(token) for sample in shard.samples for token in np.asarray(sample.tokens)[1:]]
    assert sorted(token for token in targets if token != BOS) == sorted(owner)
    assert targets.count(BOS) == len(stories)
    for sample in shard.samples:
        assert 2 <= len(sample.tokens) <= seq_len
        owners = [owner[int(token)] for token in sample.tokens if token != BOS]
        assert {each.sealed for each in owners} <= {sample.sealed}
        assert {each.row for each in owners} <= {sample.row, *sample.further_rows}
        if packing == "story":
            assert not sample.further_rows
