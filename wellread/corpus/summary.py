"""What a compiled corpus holds, in a few printed lines: counts, lengths, what was cut or left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments

BARS = 40
BINS = 8
REASONS = {
    "response_cut": "cut at --seq_len, the end of the response lost",
    "dropped_broken": "left out, broken",
    "dropped_nothing_scored": "left out, the tokenizer makes nothing of the response",
    "dropped_empty_response": "left out, the response is empty",
    "dropped_empty_document": "left out, the document is empty",
    "dropped_prompt_fills_window": "left out, the prompt fills --seq_len",
    "dropped_no_place_in_chat_template": "left out, the chat template refuses them",
    "story_split": "stories longer than --seq_len, split into several samples",
    "story_cut": "stories longer than --seq_len, cut, their end lost",
    "prompt_prefix_taken_off": "carried Alpaca's prompt already, which was taken off",
}
"""What the counts of a corpus are, in words."""


def summary(corpus: Corpus) -> None:
    """Print how many samples there are, how long they are, and what was cut or left out."""
    counts, pieces = corpus.meta["counts"], Segments(corpus) if corpus.packed else corpus
    lengths = pieces.lengths(np.arange(pieces.n))
    tokens, targets = counts["tokens"], counts["targets"]
    print(
        f"{counts['samples']:,} samples: {counts['trainable']:,} trainable, {counts['sealed']:,} sealed; "
        f"{tokens:,} tokens, {targets:,} of them scored ({targets / tokens:.1%})"
    )
    if len(corpus.set_names) > 1:
        of = np.bincount(corpus.sets(np.arange(corpus.n)), minlength=len(corpus.set_names))
        parts = (f"{name} {n:,} ({n / corpus.n:.1%})" for name, n in zip(corpus.set_names, of.tolist(), strict=True))
        print(f"sets: {', '.join(parts)}")
    if corpus.packed:
        _packing(corpus)
    piece = "segment" if corpus.packed else "sample"
    print(f"tokens per {piece}: median {np.median(lengths):.0f}, longest {lengths.max():,}")
    for line in _histogram(lengths.tolist(), int(lengths.max())):
        print(f"  {line}")
    reasons = counts | {"dropped_broken": len(corpus.meta.get("bad_rows", ()))}
    told = [(reasons[name], text) for name, text in REASONS.items() if reasons.get(name)]
    for n, text in told:
        print(f"{text}: {n:,}")
    if not told:
        print("nothing was cut or left out")
    sys.stdout.flush()


def _packing(corpus: Corpus) -> None:
    """Print how full packed samples are, and how full they would be with one segment each."""
    counts, room = corpus.meta["counts"], corpus.meta["settings"]["seq_len"]
    n, segments, tokens = counts["samples"], counts["segments"], counts["tokens"]
    print(
        f"packed: {segments:,} segments, {segments / n:.1f} in each sample of up to {room:,} tokens; "
        f"{tokens / (n * room):.1%} of the positions are used, {tokens / (segments * room):.1%} without packing"
    )


def metrics(corpus: Corpus) -> None:
    """Print the middle and the extremes of each text metric."""
    for name in corpus.metrics:
        low, median, high = np.percentile(corpus.metric(name), [5, 50, 95])
        print(f"  {name:16}  median {median:9.3f}, nine of ten from {low:9.3f} to {high:9.3f}")


def _histogram(lengths: list[int], longest: int) -> Iterator[str]:
    """One line for each of eight equal ranges of lengths."""
    width = -(-longest // BINS)
    counts = np.bincount((np.asarray(lengths) - 1) // width, minlength=-(-longest // width))
    digits = len(str(longest))
    for i, count in enumerate(counts.tolist()):
        bar = "#" * round(BARS * count / counts.max()) or "." * bool(count)
        yield f"{i * width + 1:>{digits}} to {(i + 1) * width:>{digits}}  {bar:{BARS}}  {count:,}".rstrip()
