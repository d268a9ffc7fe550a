"""Saturation in the report: verdicts, fits, and curves of what the model writes and of what it read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.saturation import outputs
from eval.saturation.figures import figures_of
from eval.saturation.verdict import VERDICTS
from eval.section import Picture, Section, Table

if TYPE_CHECKING:
    from eval.saturation.table import Row
    from wellread.run import RunDirectory

TEMPLATE = Path(__file__).with_name("section.html.j2")
HEADS = ("metric", "verdict", "step", "tokens", "learning rate", "p", "n")
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
            "margin, if that is in the first half of the run. A plateau under a decayed learning rate belongs to the "
            "schedule, not to the model: compare the learning rate of the step with the peak."
        ),
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={
            "counts": {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
            "peak": f"{run.config().optim.lr}",
            "missing": list(outputs.missing_metrics(run)),
        },
        pictures=list(_pictures(run)),
        tables=[_verdicts(rows), *_fits(run)],
        commands=[("Judge saturation again", f"wellread saturation {shlex.quote(str(run.path))}")],
    )


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
    from wellread.results import read_table

    if not (path := outputs.folder(run) / outputs.SUMMARY).is_file():
        return
    rows = read_table(path)
    steps = rows.column("step").to_pylist()
    span = f"from step {steps[0]:,} to {steps[-1]:,}"
    for name, figure in figures_of(rows).items():
        if name in NOT_DRAWN:
            continue
        side, _, metric = name.partition("-")
        metric = metric.replace("_", " ")
        if side == "read":
            alt = f"Mean {metric} of what was read, {span}; numbers in summary.parquet."
            yield Picture(f"Read: {metric}", figure, alt, "Means over readings; a sample read twice counts twice.")
        else:
            alt = f"Mean {metric} of what the model writes, {span}, with 95% intervals."
            yield Picture(f"Written: {metric}", figure, alt, "Means over texts; reference: the true continuations.")
