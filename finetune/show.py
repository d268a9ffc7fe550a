"""Printing samples of a compiled corpus, with their token ids and with marks on the tokens that carry loss."""

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
from wellread.escapes import joined, prose, styled

if TYPE_CHECKING:
    import pyarrow

WITH_LOSS, WITHOUT_LOSS = 32, 2
"""Codes of a terminal: green, dim."""
OPEN, CLOSE = "⟦", "⟧"
"""Marks around tokens with loss, if there are no colors."""


def samples(corpus: Corpus, n_shown: int) -> None:
    """Print the first samples of each data set: text and token ids, with marks on tokens with loss.

    Of a packed sample, each segment is printed separately.

    On a terminal tokens with loss are green and others dim; elsewhere tokens with loss are between ⟦ and ⟧.
    """
    if not n_shown:
        return
    colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    backend, ids = Tokenizer.load(corpus.tokenizer), corpus.sets(np.arange(corpus.n_trainable))
    sample_ids = [np.flatnonzero(ids == set_id)[:n_shown] for set_id in range(len(corpus.set_names))]
    print(f"tokens with loss are {'green, others dim' if colors else f'between {OPEN} and {CLOSE}'}")
    table, segments = corpus.samples(), Segments(corpus)
    for sample_id in np.concatenate(sample_ids).tolist():
        if not corpus.packed:
            _sample(corpus, table, sample_id, f"sample {sample_id}", backend, colors)
            continue
        low, high = corpus.segment_offsets[sample_id : sample_id + 2].tolist()
        tokens, targets = len(corpus.tokens(sample_id)), int(corpus.targets(sample_id).sum())
        several = f"{high - low} segment{'s' * (high - low > 1)}"
        print(f"\nsample {sample_id}: {several}, {tokens:,} tokens, {targets:,} with loss")
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
        f"\n{name}: {row['source']}:{','.join(map(str, row['rows']))}{about}, "
        f"{len(tokens):,} tokens, {int(targets.sum()):,} with loss"
    )
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(targets)) + 1)
    # each time decoded from the start, because some tokenizers remove the first space of a decoded text
    ends = [0, *(len(backend.decode(tokens[: run[-1] + 1].tolist())) for run in runs)]
    text = backend.decode(tokens.tolist())
    texts = [(text[a:b], bool(targets[run[0]])) for a, b, run in zip(ends, ends[1:], runs, strict=False)]
    print(joined([_marked(text, has_loss, colors) for text, has_loss in texts]))
    print(_ids([(" ".join(map(str, tokens[run].tolist())), bool(targets[run[0]])) for run in runs], colors))


def _marked(text: str, has_loss: bool, colors: bool) -> str:
    if colors:
        return styled(prose(text), WITH_LOSS if has_loss else WITHOUT_LOSS)
    return joined([OPEN, prose(text), CLOSE]) if has_loss else prose(text)


def _ids(runs: list[tuple[str, bool]], colors: bool) -> str:
    """Token ids wrapped to the width of the terminal; color codes are not counted."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    text = " ".join(_marked(ids, has_loss, False) for ids, has_loss in runs)
    lines = textwrap.fill(text, width, initial_indent="ids ", subsequent_indent="    ")
    if not colors:
        return lines
    parts = [part for before in lines.split(CLOSE) for part in before.partition(OPEN)[::2]]  # in turn dim and green
    return joined([_marked(part, bool(i % 2), True) for i, part in enumerate(parts) if part])
