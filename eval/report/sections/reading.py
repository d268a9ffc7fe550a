"""Section: what each checkpoint has read since the one before, with sample texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.report.facts import Facts
from eval.saturation.inputs import LOSS, input_means
from eval.saturation.measured import metrics_of
from eval.section import LONGEST_TEXT, TEXTS, Section, Table, cell, excerpt, slider
from wellread.units import plural

if TYPE_CHECKING:
    from eval.separation import Floats
    from wellread.corpus.read import Corpus

HEADS = ("step", "batches", "readings", "samples", "new samples", "tokens", "targets", "mean loss", "median length")


def section(facts: Facts, before: Sequence[Section]) -> Section | None:
    """A table of the intervals between checkpoints, and a slider with sample texts; None without a checkpoint."""
    if not facts.checkpoints:
        return None
    metrics = metrics_of(facts.run, facts.corpus)
    rows, panels = [], []
    for numbers, texts in _intervals(facts, metrics):
        rows.append(numbers)
        facts_of_interval = list(zip((*HEADS, *metrics)[1:], map(cell, numbers[1:]), strict=True))
        panels.append({"step": numbers[0], "facts": facts_of_interval, "texts": texts})
    return Section(
        heading="What each checkpoint has read",
        n=f"{sum(row[2] for row in rows):,} readings in {len(rows):,} intervals{_without_skipped(facts)}; {TEXTS} "
        f"sample texts per interval, evenly spaced over its readings, at most {LONGEST_TEXT} characters of each.",
        help="An interval is what was read since the previous checkpoint: what the model has learned in between, it "
        "has learned from these samples.",
        **slider(panels, "Sample texts need a script; wellread read RUN --checkpoint STEP prints them."),
        tables=[Table("Read between checkpoints; losses in nats per target token", (*HEADS, *metrics), rows)],
    )


def _without_skipped(facts: Facts) -> str:
    skipped = facts.record.skipped((0, facts.checkpoints[-1].step)).size
    return f", without {plural(skipped, 'skipped batch')}" if skipped else ""


def _intervals(facts: Facts, metrics: Mapping[str, Floats]) -> Iterator[tuple[list[Any], list[dict[str, str]]]]:
    """For each checkpoint the row of its interval, and its sample texts; a skipped batch has taught nothing.

    Means are those of saturation, so that they agree with its section.
    """
    means = input_means(facts.record, [checkpoint.step for checkpoint in facts.checkpoints], metrics)
    columns = ["batch_id", "sample_id", "n_targets", "loss", "skipped"]
    was_read, start = np.zeros(facts.corpus.n_trainable, dtype=np.bool_), 0
    text_of = _decoder(facts.corpus)
    for place, checkpoint in enumerate(facts.checkpoints):
        table = facts.record.table(columns=columns, batches=(start, checkpoint.step))
        learned = ~table.column("skipped").to_numpy()
        batch_id, sample_id, n_targets, loss = (table.column(name).to_numpy()[learned] for name in columns[:-1])
        distinct, lengths = np.unique(sample_id), facts.corpus.lengths(sample_id)
        yield (
            [
                checkpoint.step,
                np.unique(batch_id).size,
                sample_id.size,
                distinct.size,
                int((~was_read[distinct]).sum()),
                int(lengths.sum()),
                int(n_targets.sum()),
                _defined(means[LOSS].interval[place]),
                float(np.median(lengths)) if lengths.size else None,
                *(_defined(means[name].interval[place]) for name in metrics),
            ],
            _texts(text_of, batch_id, sample_id, loss),
        )
        was_read[distinct] = True
        start = checkpoint.step


def _defined(mean: float) -> float | None:
    """A mean; None where no reading has a value."""
    return float(mean) if np.isfinite(mean) else None


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
