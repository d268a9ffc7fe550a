"""Membership in the report: main result, remarks, curves, columns of AUC."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.groups import READ, SEALED, SHUFFLED, UNREAD
from eval.membership.checks import GATES, suspicions
from eval.membership.summary import conclusions, scores_table
from eval.membership.tables import read_scores
from eval.randomness import Randomness
from eval.section import Column, Picture, Section, with_interval
from eval.selection import selection
from eval.separation import ALPHAS, nonmembers_needed, roc
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.results import Result
    from wellread.run import RunDirectory

TASK = "membership/loss"
TEMPLATE = Path(__file__).with_name("section.html.j2")
LOW_RATES = "The same curve: log axes show low false-positive rates, down to one sealed sample."


def section(run: RunDirectory, results: Sequence[Result]) -> Section | None:
    """The section of a run, about the loss or else the first score; None without results."""
    warnings = suspicions(results)
    checks = list(_checks(results, warnings))
    tasks = [result.task for result in results if result.task.startswith("membership/")]
    if not tasks:
        return None
    task = TASK if TASK in tasks else tasks[0]
    name, every = task.partition("/")[2], results
    results = [result for result in results if result.task == task]
    aucs = {(result.step, result.group): result for result in results if result.metric == "auc"}
    evaluated = max((step for step, group in aucs if group == READ), default=None)
    return Section(
        heading=f"Membership: can {_noun(name)} distinguish read from sealed samples?",
        n=_counts(results, evaluated),
        help=f"AUC is the probability that a sample of the group has a {_better(name)} than a sealed one: 0.5 is "
        "chance, 1 is a perfect separation. Intervals are 95%, from a bootstrap over documents.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={
            "finding": _finding(aucs, evaluated, name) or _losses(results),
            "warnings": warnings,
            "remarks": [*_remarks(run, results, evaluated), *checks],
        },
        pictures=list(_pictures(run, results, evaluated, name, suspect=bool(warnings))),
        tables=[table] if (table := scores_table(every)) else [],
        columns=[_column(aucs, group) for group in (READ, UNREAD)],
        commands=[
            (
                "Evaluate all checkpoints and write this page again",
                f"wellread membership {shlex.quote(str(run.path))}",
            )
        ],
    )


def _noun(score: str) -> str:
    return "the loss" if score == "loss" else score


def _better(score: str) -> str:
    return "lower loss" if score == "loss" else f"higher {score}"


def _counts(results: Sequence[Result], step: int | None) -> str:
    """How many samples were compared, in words."""
    checkpoints = plural(len({result.step for result in results}), "checkpoint")
    sizes = {(result.step, result.group): result for result in results if result.metric == "n_sealed"}
    if not sizes:
        return f"{checkpoints}; no sealed samples."
    compared = sizes.get((step or 0, READ)) or sizes.get((0, UNREAD))
    if compared is None:
        return f"{checkpoints}."
    count = int(compared.value)
    if compared.group == UNREAD:
        return f"{checkpoints}; nothing is read at step 0, {compared.n:,} unread against {count:,} sealed samples."
    return f"{checkpoints}; {compared.n:,} read against {count:,} sealed samples at the last one."


def _finding(aucs: dict[tuple[int, str], Result], step: int | None, score: str) -> str | None:
    """The main result in one sentence; None when there is none."""
    if step is None:
        return None
    read, control = aucs[step, READ], aucs.get((step, SHUFFLED))
    chance = f" Shuffled labels give {with_interval(control)}." if control else ""
    return (
        f"At step {step:,}, a sample that the model has read has a {_better(score)} than a sealed one with "
        f"probability {with_interval(read)} (AUC; 0.5 is chance).{chance}"
    )


def _losses(results: Sequence[Result]) -> str | None:
    """The loss of read samples in one sentence, for a run without sealed ones; None when it was not measured."""
    losses = [result for result in results if (result.group, result.metric) == (READ, "mean_loss")]
    if not losses:
        return None
    last = max(losses, key=lambda result: result.step)
    return (
        f"At step {last.step:,}, the mean loss of read samples is {with_interval(last)}. There are no sealed samples "
        "to compare them with."
    )


def _remarks(run: RunDirectory, results: Sequence[Result], step: int | None) -> Iterator[str]:
    """Facts that are needed to interpret the numbers."""
    read_results = [result for result in results if result.step == step and result.group == READ]
    sizes = {result.metric: result for result in read_results}
    if "n_sealed" in sizes:
        for alpha in ALPHAS:
            rate = sizes.get(f"tpr_at_fpr_{alpha:g}")
            needed = f"not reported, because it needs {nonmembers_needed(alpha):,} sealed samples"
            stated = with_interval(rate) if rate else needed
            yield f"True-positive rate at a false-positive rate of {100 * alpha:g}%: {stated}."
    if run.config().data.pack:
        yield "Samples are packed; their rows (segments) are compared, each scored by itself."
    if why := Randomness.why_no_control(run):
        yield f"“{UNREAD}” is not a control: {why}."
    if step is not None and (why := selection(run, [step])):
        yield f"Read and sealed samples may not be comparable: {why}."


def _checks(results: Sequence[Result], warnings: Sequence[str]) -> Iterator[str]:
    """Whether the groups can be distinguished without the model, copies, and tests of groups."""
    last = max((result.step for result in results), default=0)
    values = {(r.task, r.metric): r.value for r in results if (r.step, r.group) == (last, READ)}
    for kind in GATES:
        if (f"gate/{kind}", "auc") in values:
            auc, p = values[f"gate/{kind}", "auc"], values[f"gate/{kind}", "p"]
            yield (
                f"Without the model, from {GATES[kind]}: AUC {auc:.3f}, p {p:.2g}; after Holm "
                f"{values[f'gate/{kind}', 'p_holm']:.2g}."
            )
    yield from (f"{line}." for line in conclusions(results) if line not in warnings)


def _column(aucs: dict[tuple[int, str], Result], group: str) -> Column:
    cells = {step: with_interval(result) for (step, of), result in aucs.items() if of == group}
    return Column((f"AUC {group}", "[95%]"), cells)


def _pictures(
    run: RunDirectory, results: Sequence[Result], step: int | None, score: str, *, suspect: bool
) -> Iterator[Picture]:
    """AUC of all checkpoints; ROC curve and scores at the last evaluated one."""
    from wellread.plots.membership import auc_by_step, score_histogram
    from wellread.plots.membership import roc as roc_plot

    if any(result.metric == "auc" for result in results):
        alt = "AUC against the step, with 95% intervals, for read samples and the two controls; numbers below."
        caption = f"How well {_noun(score)} distinguishes samples of a group from sealed ones. Dashed: chance."
        yield Picture("Membership", auc_by_step(results, suspect=suspect), alt, caption)
    scores = read_scores(run, step, score) if step is not None else {}
    if not scores.keys() >= {READ, SEALED}:
        return
    read, sealed = scores[READ], scores[SEALED]
    curve = roc(read, sealed)
    alt = f"ROC curve of {read.size:,} read against {sealed.size:,} sealed samples."
    caption = f"All thresholds on {_noun(score)} at step {step:,}; the dashed line is chance."
    yield Picture("ROC", roc_plot(*curve, nonmembers=sealed.size), alt, caption)
    yield Picture("ROC, log axes", roc_plot(*curve, nonmembers=sealed.size, log=True), alt, LOW_RATES)
    if score != "loss":
        return  # the axis of this figure is in nats per token
    alt = f"Mean score {read.mean():.3f} of read and {sealed.mean():.3f} of sealed samples, in nats per token."
    figure = score_histogram({READ: read, SEALED: sealed})
    yield Picture("Scores", figure, alt, f"Mean log-likelihood of each sample at step {step:,}; higher is more likely.")
