"""Section: what each checkpoint has read since the one before, with sample texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.report.facts import Facts
from eval.section import LONGEST_TEXT, TEXTS, Section, Table, cell, excerpt, slider

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus

HEADS = ("step", "batches", "readings", "samples", "new samples", "tokens", "targets", "mean loss", "median length")


def section(facts: Facts, before: Sequence[Section]) -> Section | None:
    """A table of the intervals between checkpoints, and a slider with sample texts; None without a checkpoint."""
    if not facts.checkpoints:
        return None
    metrics = facts.corpus.metrics
    rows, panels = [], []
    for numbers, texts in _intervals(facts, metrics):
        rows.append(numbers)
        facts_of_interval = list(zip((*HEADS, *metrics)[1:], map(cell, numbers[1:]), strict=True))
        panels.append({"step": numbers[0], "facts": facts_of_interval, "texts": texts})
    return Section(
        heading="What each checkpoint has read",
        n=f"{facts.read.readings:,} readings in {len(rows):,} intervals; {TEXTS} sample texts per interval, evenly "
        f"spaced over its readings, at most {LONGEST_TEXT} characters of each.",
        help="An interval is what was read since the previous checkpoint: what the model has learned in between, it "
        "has learned from these samples.",
        **slider(panels, "Sample texts need a script; wellread read RUN --checkpoint STEP prints them."),
        tables=[Table("Read between checkpoints; losses in nats per target token", (*HEADS, *metrics), rows)],
    )


def _intervals(facts: Facts, metrics: Sequence[str]) -> Iterator[tuple[list[object], list[dict[str, str]]]]:
    """For each checkpoint the row of its interval, and its sample texts."""
    columns = ["batch_id", "sample_id", "n_targets", "loss", "skipped"]
    was_read, start = np.zeros(facts.corpus.n_trainable, dtype=np.bool_), 0
    text_of = _decoder(facts.corpus)
    of_metric = {name: facts.corpus.metric(name) for name in metrics}
    for checkpoint in facts.checkpoints:
        table = facts.record.table(columns=columns, batches=(start, checkpoint.step))
        batch_id, sample_id, n_targets, loss, skipped = (table.column(name).to_numpy() for name in columns)
        distinct, lengths = np.unique(sample_id), facts.corpus.lengths(sample_id)
        weights = np.where(skipped, 0, n_targets)
        yield (
            [
                checkpoint.step,
                checkpoint.step - start,
                sample_id.size,
                distinct.size,
                int((~was_read[distinct]).sum()),
                int(lengths.sum()),
                int(n_targets.sum()),
                float(np.average(loss, weights=weights)) if weights.any() else None,
                float(np.median(lengths)) if lengths.size else None,
                *(_mean(values[sample_id]) for values in of_metric.values()),
            ],
            _texts(text_of, batch_id, sample_id, loss),
        )
        was_read[distinct] = True
        start = checkpoint.step


def _mean(values: NDArray[np.floating[Any]]) -> float | None:
    """Mean over readings; a metric is not defined for every text."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else None


def _texts(text_of: Callable[[int], str], batch_id: Any, sample_id: Any, loss: Any) -> list[dict[str, str]]:
    if not len(sample_id):
        return []
    places = np.unique(np.linspace(0, len(sample_id) - 1, TEXTS).round().astype(int))
    return [
        {
            "about": f"sample {sample_id[place]:,}, batch {batch_id[place]:,}, loss {loss[place]:.2f}",
            "text": text_of(int(sample_id[place])),
        }
        for place in places
    ]


def _decoder(corpus: Corpus) -> Callable[[int], str]:
    """The beginning of a sample as text; its token ids when the corpus has no tokenizer."""
    from wellread.corpus.decoder import Decoder

    decoder = Decoder.load(corpus.tokenizer) if corpus.tokenizer.is_dir() else None

    def text_of(sample_id: int) -> str:
        tokens = corpus.tokens(sample_id)
        ids = tokens[: LONGEST_TEXT + 1].tolist()
        text = decoder.decode(ids) if decoder else f"token ids {' '.join(map(str, ids))}"
        return excerpt(text) if len(ids) == len(tokens) or len(text) > LONGEST_TEXT else f"{text}…"

    return text_of
