"""Section: several runs next to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eval import between
from eval.generations.evaluation import REFERENCE, Generations
from eval.report.facts import Facts
from eval.section import Picture, Section, Table

TEMPLATE = Path(__file__).with_name("together.html.j2")
HOLDOUT = "sealed/holdout_loss"
SAME_AS_OTHERS = ("loss", "perplexity", "corpus_bleu", "corpus_chrf")
"""Metrics that show the same as others."""


def section(facts: Sequence[Facts], names: Sequence[str]) -> Section:
    """Losses of all runs in one figure, and one row per run."""
    from wellread.plots.loss import compare_losses

    curves, rows = {}, []
    for name, each in zip(names, facts, strict=True):
        learned = np.flatnonzero(np.isfinite(each.read.losses))
        if learned.size:
            curves[name] = (learned, each.read.losses[learned])
        last, held_out = each.checkpoints[-1] if each.checkpoints else None, each.holdout_losses
        rows.append(
            [
                name,
                each.run.config().model.name,
                each.record.batches,
                last.tokens if last else None,
                each.read.samples,
                float(each.read.losses[learned][-1]) if learned.size else None,
                held_out[-1][1] if held_out else None,
            ]
        )
    bands = between.bands([_metrics(each) for each in facts])
    picture = Picture(
        "Loss of the runs",
        compare_losses(curves),
        f"Moving averages of the training losses of {len(curves)} runs.",
        "Moving average of the training loss of each run. Compare runs only on the same data and tokenizer.",
    )
    heads = ("run", "model", "batches", "tokens", "samples read", "last training loss", "last holdout loss")
    return Section(
        heading="The runs next to each other",
        n=f"{len(facts):,} runs.",
        help="Differences between runs that differ only in their seed show how large chance is.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={"bands": len(bands), "others": between.other_differences([each.run for each in facts])},
        pictures=[*([picture] if curves else []), *_pictures(bands)],
        tables=[
            Table("Runs; losses in nats per target token", heads, rows),
            *([between.table_of(bands)] * bool(bands)),
        ],
    )


def _metrics(facts: Facts) -> between.Values:
    """Metrics of what the checkpoints of a run write, from the table of generations, and their holdout loss."""
    values: dict[str, dict[int, float]] = {}
    for result in Generations.stored(facts.run):
        if result.group != REFERENCE and result.metric not in SAME_AS_OTHERS:
            values.setdefault(f"{result.group}/{result.metric}", {})[result.step] = result.value
    return values | ({HOLDOUT: dict(facts.holdout_losses)} if facts.holdout_losses else {})


def _pictures(bands: Sequence[between.Band]) -> Iterator[Picture]:
    for metric, figure in between.figures_of(bands).items():
        words = metric.replace("_", " ")
        of_metric = [band for band in bands if band.metric.rpartition("/")[2] == metric]
        widest = max(of_metric, key=lambda band: band.high - band.low)
        alt = (
            f"Mean {words} of {widest.runs} runs; the band is widest at step {widest.step:,}: "
            f"from {widest.low:.4g} to {widest.high:.4g}."
        )
        yield Picture(
            f"Between runs: {words}",
            figure,
            alt,
            "Mean over the runs; the band goes from the lowest to the highest run.",
        )
