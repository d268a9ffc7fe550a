"""Forgetting on the terminal and in the report: main result, picture with its control, cohorts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.groups import READ, UNREAD
from eval.section import Picture, Section, Table, with_interval
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.results import Result
    from wellread.run import RunDirectory

DIFFERENCE, PLAIN = "difference", "plain_difference"
"""Metrics: with the recorded loss as "before", and without it."""
TEMPLATE = """<p class="finding">{{ finding }}</p>
<ul>
<li>{{ control }}</li>
<li>Without the record, the difference of the scores is {{ plain }}.</li>
</ul>
"""


def overview(results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
    """Heads and rows: a row per checkpoint."""
    cells = {(each.step, each.group, each.metric): each for each in results}

    def cell(step: int, group: str, metric: str) -> str | None:
        result = cells.get((step, group, metric))
        return with_interval(result) if result else None

    heads = ["step", "read", "control: unread", "read, plain difference", "n"]
    rows: list[list[object]] = []
    for step in sorted({each.step for each in results}):
        columns = [cell(step, READ, DIFFERENCE), cell(step, UNREAD, DIFFERENCE), cell(step, READ, PLAIN)]
        read = cells.get((step, READ, DIFFERENCE))
        rows.append([step, *columns, read.n if read else None])
    return heads, rows


def section(run: RunDirectory, results: Sequence[Result]) -> Section | None:
    """The section of a run; None until a checkpoint that has read something is evaluated."""
    from wellread.plots.forgetting import forgetting_by_step

    read = [each for each in results if (each.group, each.metric) == (READ, DIFFERENCE)]
    if not read:
        return None
    last = max(read, key=lambda each: each.step)
    controls = {each.step: each for each in results if (each.group, each.metric) == (UNREAD, DIFFERENCE)}
    plain = next(each for each in results if (each.step, each.group, each.metric) == (last.step, READ, PLAIN))
    control = controls[max(controls)] if controls else None
    alt = (
        f"Difference against the step, with 95% intervals: {with_interval(last)} for read samples at step "
        f"{last.step:,}, and the control of samples that were read later."
    )
    caption = (
        "What reading left behind: the change of a sample's log-likelihood since just before its first reading, minus "
        "that of sealed documents. The control are samples that had not been read yet: it must be 0, the dashed line."
    )
    return Section(
        heading="Forgetting: what is left of a reading?",
        n=f"{plural(len({each.step for each in read}), 'checkpoint')}; {last.n:,} read samples at the last one.",
        help="The difference is in nats per token: 0 means that a sample is as likely as if it had not been read. "
        "Intervals are 95%, clustered by document and by batch of reading.",
        template=TEMPLATE,
        values={
            "finding": f"At step {last.step:,}, samples that were read are more likely than without reading by "
            f"{with_interval(last)} nats per token.",
            "control": f"The control, samples that step {control.step:,} had not read yet: {with_interval(control)}."
            if control
            else "There is no control: every evaluated checkpoint had read all samples.",
            "plain": with_interval(plain),
        },
        pictures=[Picture("Forgetting", forgetting_by_step(results), alt, caption)],
        tables=[_cohorts(results, last.step)],
        commands=[("Measure again what is left of readings", f"wellread forgetting {shlex.quote(str(run.path))}")],
    )


def _cohorts(results: Sequence[Result], step: int) -> Table:
    """All cohorts at a step."""
    cells = {(each.group, each.metric): each for each in results if each.step == step}
    rows = [
        [group, result.n, with_interval(result), with_interval(cells.get((group, PLAIN)))]
        for (group, metric), result in cells.items()
        if metric == DIFFERENCE
    ]
    heads = ["cohort", "n", "difference", "plain difference"]
    return Table(f"Cohorts at step {step:,}", heads, rows)
