"""Printed summary of a compiled corpus: counts, lengths, and what was truncated or left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from wellread.corpus import chat
from wellread.corpus.coverage import DELETED, UNKNOWN
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.units import plural

BARS = 40
BINS = 8
REASONS = {
    "response_cut": "truncated at --seq_len, the end of the response is lost",
    "dropped_broken": "left out, malformed",
    "dropped_nothing_scored": "left out, the response has no tokens",
    "dropped_empty_response": "left out, the response is empty",
    "dropped_weight_zero": "left out, all answers have weight 0",
    "messages_after_last_answer": "messages after the last answer, left out",
    "messages_joined": "messages that follow one of the same role, joined to it",
    "answers_with_weight_zero": "answers with weight 0, without loss",
    "dropped_empty_document": "left out, the document is empty",
    "dropped_prompt_fills_window": "left out, the prompt fills --seq_len",
    "dropped_no_place_in_chat_template": "left out, rejected by the chat template",
    "story_split": "stories longer than --seq_len, split into several samples",
    "story_cut": "stories longer than --seq_len, truncated, the end is lost",
    chat.TRIMMED: "answers that lose whitespace at their start in the chat template",
    chat.PROMPT_TRIMMED: "other messages that lose whitespace at their start in the chat template",
    chat.PROMPT_ADDED: "other messages next to which the chat template writes text, or which it repeats",
    chat.ADDED: "answers before which the chat template writes text that is learned, too",
    DELETED: "characters for which the tokenizer has no token, deleted",
    UNKNOWN: "unknown tokens instead of text for which the tokenizer has no token",
    "prompt_prefix_taken_off": "already had Alpaca's prompt, which was removed",
}
"""Descriptions of the counts of a corpus."""
TOTALS = (
    "samples",
    "trainable",
    "sealed",
    "tokens",
    "targets",
    "segments",
    "sealed_segments",
    "sealed_tokens",
    "longest",
    "duplicates",
)
"""Counts of a corpus that describe its size; all others are printed."""


def summary(corpus: Corpus) -> None:
    """Print how many samples there are, how long they are, and what was truncated or left out."""
    counts, units = corpus.meta["counts"], Segments(corpus) if corpus.packed else corpus
    lengths = units.lengths(np.arange(units.n))
    tokens, targets = counts["tokens"], counts["targets"]
    print(
        f"{counts['samples']:,} samples: {counts['trainable']:,} trainable, {counts['sealed']:,} sealed; "
        f"{tokens:,} tokens, {targets:,} of them with loss ({targets / tokens:.1%})"
    )
    if len(corpus.set_names) > 1:
        sizes = np.bincount(corpus.sets(np.arange(corpus.n)), minlength=len(corpus.set_names)).tolist()
        parts = (f"{name} {n:,} ({n / corpus.n:.1%})" for name, n in zip(corpus.set_names, sizes, strict=True))
        print(f"sets: {', '.join(parts)}")
    if corpus.packed:
        _packing(corpus)
    if draw := corpus.canaries:
        print(
            f"canaries: {draw.per_dose:,} for each of {', '.join(map(str, draw.repeats))} readings, "
            f"{draw.controls:,} controls, sha256 {draw.sha256}"
        )
    if marks := corpus.marks:
        print(
            f"marks: {plural(marks.places, 'place')} in {plural(marks.documents, 'document')}, "
            f"{plural(len(marks.pairs), 'pair')} of {marks.file}, sha256 {marks.sha256}"
        )
    unit = "segment" if corpus.packed else "sample"
    print(f"tokens per {unit}: median {np.median(lengths):.0f}, longest {lengths.max():,}")
    for line in _histogram(lengths.tolist(), int(lengths.max())):
        print(f"  {line}")
    reasons = counts | {"dropped_broken": len(corpus.meta.get("bad_rows", ()))}
    names = REASONS | {name: name for name in reasons if name not in TOTALS and name not in REASONS}
    examples = {name: f"; first, {text}" for name, text in corpus.meta.get("examples", {}).items()}
    lines = [f"{text}: {reasons[name]:,}{examples.get(name, '')}" for name, text in names.items() if reasons.get(name)]
    for each in corpus.meta.get("sets", ()):
        lines += [
            f"column {column!r} of {each['name']} is ignored: {plural(n, 'row')}"
            for column, n in each.get("ignored", {}).items()
        ]
        if each.get("usable", each["taken"]) > each["taken"]:
            lines += [f"not taken of {each['name']}, as --data asks: {plural(each['usable'] - each['taken'], 'row')}"]
    for line in lines or ["nothing was truncated or left out"]:
        print(line)
    sys.stdout.flush()


def _packing(corpus: Corpus) -> None:
    """Print the share of positions that packed samples use, and the share that samples would use without packing."""
    counts, capacity = corpus.meta["counts"], corpus.meta["settings"]["seq_len"]
    n, segments, tokens = counts["samples"], counts["segments"], counts["tokens"]
    print(
        f"packed: {segments:,} segments, {segments / n:.1f} in each sample of up to {capacity:,} tokens; "
        f"{tokens / (n * capacity):.1%} of the positions are used, {tokens / (segments * capacity):.1%} without packing"
    )


def metrics(corpus: Corpus) -> None:
    """Print the median of each text metric, and the range of the middle 90% of samples."""
    for name in corpus.metrics:
        low, median, high = np.nanpercentile(corpus.metric(name), [5, 50, 95])
        print(f"  {name:16}  median {median:9.3f}, 90% between {low:9.3f} and {high:9.3f}")


def _histogram(lengths: list[int], longest: int) -> Iterator[str]:
    """One line for each of `BINS` equal ranges of lengths."""
    width = -(-longest // BINS)
    counts = np.bincount((np.asarray(lengths) - 1) // width, minlength=-(-longest // width))
    digits = len(str(longest))
    for i, count in enumerate(counts.tolist()):
        bar = "#" * round(BARS * count / counts.max()) or "." * bool(count)
        yield f"{i * width + 1:>{digits}} to {(i + 1) * width:>{digits}}  {bar:{BARS}}  {count:,}".rstrip()
