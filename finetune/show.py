"""What a compiled corpus holds: counts, lengths, what was cut or left out, and its first samples token by token."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.corpus.tokenizer import Tokenizer
from wellread.terminal import visible

if TYPE_CHECKING:
    import pyarrow

SCORED, MASKED, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
"""Around scored tokens, where there are no colors."""


def samples(corpus: Corpus, shown: int) -> None:
    """Print the first samples of each set: text and token ids, scored tokens apart from masked ones.

    Of a packed sample, each segment for itself.

    On a terminal scored tokens are green and masked ones dim; elsewhere scored tokens stand between ⟦ and ⟧.
    """
    if not shown:
        return
    colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    backend, ids = Tokenizer.load(corpus.tokenizer), corpus.sets(np.arange(corpus.n_trainable))
    chosen = [np.flatnonzero(ids == set_id)[:shown] for set_id in range(len(corpus.set_names))]
    print(f"scored tokens are {'green, masked ones dim' if colors else f'between {OPEN} and {CLOSE}'}")
    table, segments = corpus.samples(), Segments(corpus)
    for sample_id in np.concatenate(chosen).tolist():
        if not corpus.packed:
            _sample(corpus, table, sample_id, f"sample {sample_id}", backend, colors)
            continue
        low, high = corpus.segment_offsets[sample_id : sample_id + 2].tolist()
        tokens, targets = len(corpus.tokens(sample_id)), int(corpus.targets(sample_id).sum())
        several = f"{high - low} segment{'s' * (high - low > 1)}"
        print(f"\nsample {sample_id}: {several}, {tokens:,} tokens, {targets:,} scored")
        for segment in range(low, high):
            name = f"sample {sample_id}, segment {segment - low + 1} of {high - low}"
            _sample(segments, segments.table, segment, name, backend, colors)
    sys.stdout.flush()


def _sample(
    reader: Corpus | Segments, table: pyarrow.Table, number: int, name: str, backend: Tokenizer, colors: bool
) -> None:
    row = {column: table[column][number].as_py() for column in ("source", "rows", "category", "author")}
    tokens, targets = reader.tokens(number), reader.targets(number)
    about = "".join(f", {column} {row[column]}" for column in ("category", "author") if row[column])
    print(
        f"\n{name}: {row['source']}:{','.join(map(str, row['rows']))}{visible(about)}, "
        f"{len(tokens):,} tokens, {int(targets.sum()):,} scored"
    )
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(targets)) + 1)
    # decoded from the beginning each time: some tokenizers take the first blank off any text they decode
    ends = [0, *(len(backend.decode(tokens[: run[-1] + 1].tolist())) for run in runs)]
    text = backend.decode(tokens.tolist())
    texts = [(visible(text[a:b]), bool(targets[run[0]])) for a, b, run in zip(ends, ends[1:], runs, strict=False)]
    print("".join(_marked(text, scored, colors) for text, scored in texts))
    print(_ids([(" ".join(map(str, tokens[run].tolist())), bool(targets[run[0]])) for run in runs], colors))


def _marked(text: str, scored: bool, colors: bool) -> str:
    if colors:
        return f"{SCORED if scored else MASKED}{text}{PLAIN}"
    return f"{OPEN}{text}{CLOSE}" if scored else text


def _ids(runs: list[tuple[str, bool]], colors: bool) -> str:
    """Token ids in lines of the terminal's width; colors do not count."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    text = " ".join(_marked(ids, scored, False) for ids, scored in runs)
    lines = textwrap.fill(text, width, initial_indent="ids ", subsequent_indent="    ")
    if not colors:
        return lines
    return f"{MASKED}{lines}{PLAIN}".replace(OPEN, f"{PLAIN}{SCORED}").replace(CLOSE, f"{PLAIN}{MASKED}")
