"""Saturation in the report: verdicts, fits, and curves of what the model writes and of what it read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.saturation import outputs
from eval.saturation.collect import beyond
from eval.saturation.figures import figures_of
from eval.saturation.summary import READ
from eval.saturation.verdict import CANNOT_TELL, NO_CHANGE, NOT_REACHED, PEAKED, SATURATED, VERDICTS
from eval.section import Picture, Section, Table, cell, p_value

if TYPE_CHECKING:
    from eval.saturation.table import Row
    from wellread.run import RunDirectory

TEMPLATE = Path(__file__).with_name("section.html.j2")
HEADS = ("metric", "verdict", "step", "tokens", "learning rate", "p", "n")
SENTENCES = {
    SATURATED: "is saturated from step {step} on: {tokens} tokens read, {share} of the peak learning rate. How sure: "
    "that a later checkpoint differs from the last one by the margin or more is rejected at p = {p} on {n} texts.",
    PEAKED: "has its extreme at step {step}: {tokens} tokens read, {share} of the peak learning rate. How sure: that "
    "it equals the first or the last checkpoint is rejected at p = {p}, on a half of {n} texts that did not choose "
    "the step.",
}
"""Verdicts with a step."""
MEANINGS = {
    NOT_REACHED: "changed from first to last checkpoint, but were not flat in the first half of these steps; this "
    "does not say that they would still improve",
    NO_CHANGE: "a change of the size that matters would have been seen, and was not",
    CANNOT_TELL: "too few texts, or too much noise, for any statement",
}
"""Verdicts without a step."""
NOT_DRAWN = ("output-loss", "output-perplexity", "output-corpus_bleu", "output-corpus_chrf", "read-perplexity")
"""Figures that show the same as others."""


def section(run: RunDirectory, rows: Sequence[Row]) -> Section:
    """The section of a run that was judged."""
    counts = Counter(row.verdict for row in rows)
    sizes = sorted({row.n for row in rows})
    return Section(
        heading="Saturation: when did each metric stop changing?",
        n=f"{len(rows)} metrics, each of {' or '.join(f'{size:,}' for size in sizes)} texts.",
        help=(
            "A metric is saturated at the first checkpoint from which all later ones equal the last one, within a "
            "margin (5% of its total change, or --margin), if that is in the first half of the steps compared. "
            "A plateau under a decayed learning rate belongs to the schedule, not to the model: compare the learning "
            "rate of the step with the peak. The steps are those of checkpoints: the change may have ended at any time "
            "after the checkpoint before."
        ),
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={
            "counts": {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
            "peak": f"{run.config().optim.lr}",
            "dated": list(_dated(rows, run.config().optim.lr)),
            "undated": list(_undated(rows)),
            "missing": [*_beyond(run), *outputs.missing_metrics(run, outputs.WhatWasRead.of(run))],
        },
        pictures=list(_pictures(run)),
        tables=[*_what_was_read(run, rows), _verdicts(rows), *_fits(run)],
        commands=[("Judge saturation again", f"wellread saturation {shlex.quote(str(run.path))}")],
    )


def _beyond(run: RunDirectory) -> Iterator[str]:
    """That the run was trained beyond what the verdicts compare; nothing without a summary."""
    from wellread.results import read_table

    if (path := outputs.folder(run) / outputs.SUMMARY).is_file():
        yield from beyond(run, max(read_table(path).column("step").to_pylist()))


def _dated(rows: Sequence[Row], peak: float | None) -> Iterator[dict[str, str]]:
    """Metric and sentence of each verdict that names a step, by step."""
    for row in sorted((row for row in rows if row.step is not None), key=lambda row: row.step or 0):
        sentence = SENTENCES[row.verdict].format(
            step=cell(row.step),
            tokens=cell(row.tokens),
            share=f"{row.learning_rate / peak:.0%}" if peak and row.learning_rate is not None else "–",
            p=p_value(row.p),
            n=cell(row.n),
        )
        yield {"metric": row.metric, "sentence": sentence}


def _undated(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """The other verdicts: their metrics, and what the verdict means."""
    for verdict, meaning in MEANINGS.items():
        if metrics := [row.metric for row in rows if row.verdict == verdict]:
            yield {"verdict": verdict, "metrics": ", ".join(metrics), "meaning": meaning}


def _what_was_read(run: RunDirectory, rows: Sequence[Row]) -> Iterator[Table]:
    """What was read until each step of a verdict; nothing if the summary does not have these steps."""
    from wellread.results import read_table

    path, steps = outputs.folder(run) / outputs.SUMMARY, {row.step for row in rows if row.step is not None}
    if not steps or not path.is_file():
        return
    table = read_table(path)
    spans = {"the previous checkpoint": f"{READ}interval/", "the start": f"{READ}cumulative/"}
    metrics = [name.partition("/")[2] for name in table.column_names if name.startswith(spans["the start"])]
    cells: list[list[object]] = [
        [of_step["step"], since, *(of_step[f"{column}{metric}"] for metric in metrics)]
        for of_step in table.to_pylist()
        if of_step["step"] in steps
        for since, column in spans.items()
    ]
    heads = ("step", "read since", *(metric.replace("_", " ") for metric in metrics))
    yield Table("What was read until the steps of the verdicts: means over readings", heads, cells)


def _verdicts(rows: Sequence[Row]) -> Table:
    cells = [[r.metric, r.verdict, r.step, r.tokens, r.learning_rate, r.p, r.n] for r in rows]
    return Table("Verdict about each metric; p is that of the test that decided", HEADS, cells)


def _fits(run: RunDirectory) -> Iterator[Table]:
    """The fits, which are a second line; nothing before they were made."""
    from wellread.results import read_table

    if not (path := outputs.folder(run) / "fits.parquet").is_file():
        return
    names = ("metric", "form", "verdict", "reason", "chi2", "chi2_p", "runs_p", "asymptote", "ci_low", "ci_high")
    rows = [[row[name] for name in names] for row in read_table(path).to_pylist()]
    yield Table("Fitted curves; an asymptote is only stated for a fit that passed, which proves nothing", names, rows)


def _pictures(run: RunDirectory) -> Iterator[Picture]:
    from eval.generations.evaluation import REFERENCE, SEALED
    from wellread.results import read_table

    if not (path := outputs.folder(run) / outputs.SUMMARY).is_file():
        return
    rows = read_table(path)
    steps = rows.column("step").to_pylist()
    span = f"from step {steps[0]:,} to {steps[-1]:,}"
    for name, figure in figures_of(rows).items():
        if name in NOT_DRAWN:
            continue
        side, _, column = name.partition("-")
        metric = column.replace("_", " ")
        if side == "read":
            alt = f"Mean {metric} of what was read, {span}; numbers in summary.parquet."
            yield Picture(f"Read: {metric}", figure, alt, "Means over readings; a sample read twice counts twice.")
        elif f"{SEALED}/{column}" in rows.column_names:
            alt = f"Mean {metric} of sealed samples, {span}, with 95% intervals."
            yield Picture(f"Sealed samples: {metric}", figure, alt, "Means over sealed samples.")
        else:
            alt = f"Mean {metric} of what the model writes, {span}, with 95% intervals."
            of = "; reference: the true continuations" if f"{REFERENCE}/{column}" in rows.column_names else ""
            yield Picture(f"Written: {metric}", figure, alt, f"Means over texts{of}.")
