"""Results of membership in a line and in a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eval.groups import READ, SEALED, SHUFFLED, UNREAD
from eval.membership.checks import GATES, suspicions
from eval.section import Table, p_value, with_interval
from eval.separation import ALPHAS

if TYPE_CHECKING:
    from wellread.results import Result

HEADS = [
    *("step", "score", "AUC read", "p", "Holm", "gates", "TPR"),
    *("AUC unread", "labels shuffled", "loss read", "loss sealed"),
]
"""Short, so that the first line fits 80 columns. Those of the second line are of the first score only."""
PS = ("p", "p_holm")
INFERENCE = ("dataset_inference", "p")
TPR = f"tpr_at_fpr_{ALPHAS[0]:g}"


def headline(results: Sequence[Result]) -> str:
    """The AUC of each group, of the first score; without sealed samples, the losses."""
    first = [result for result in results if result.task == results[0].task]
    main = (READ, UNREAD, SHUFFLED)
    aucs = [f"{each.group} {each.value:.3f}" for each in first if each.metric == "auc" and each.group in main]
    losses = [f"{each.group} {each.value:.3f}" for each in first if each.metric == "mean_loss"]
    if not aucs and losses:
        return f"mean loss: {', '.join(losses)}"
    return f"AUC against sealed: {', '.join(aucs) or 'none'}"


def overview(results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
    """One row for the first score at each checkpoint, and for each other score at the last one.

    The controls and the losses are in the rows of the first score.
    """
    cells = {(result.step, result.task, result.group, result.metric): result for result in results}
    scores = [result for result in results if result.task.startswith("membership/")]
    tasks, steps = list(dict.fromkeys(result.task for result in scores)), sorted({result.step for result in scores})
    pairs = [(step, task) for step in steps for task in (tasks[:1] if step != steps[-1] else tasks)]

    def value(key: tuple[int, str], group: str, metric: str) -> float | None:
        result = cells.get((*key, group, metric))
        return result.value if result else None

    def auc_of(key: tuple[int, str], group: str) -> str | None:
        result = cells.get((*key, group, "auc"))
        return with_interval(result) if result else None

    rows: list[list[object]] = [
        [
            *(key[0], key[1].partition("/")[2], auc_of(key, READ)),
            *(p_value(value(key, READ, metric)) for metric in ("p", "p_holm")),
            *(gates(results, key[0], READ), None if (rate := value(key, READ, TPR)) is None else share(rate)),
            *(auc_of(key, group) if key[1] == tasks[0] else None for group in (UNREAD, SHUFFLED)),
            *(value(key, group, "mean_loss") for group in (READ, SEALED)),
        ]
        for key in pairs
    ]
    return HEADS, rows


def scores_table(results: Sequence[Result]) -> Table | None:
    """All scores, for the report: of read samples at each checkpoint, of other groups at the last; None without AUC."""
    cells = {(result.step, result.task, result.group, result.metric): result for result in results}
    last = max((result.step for result in results), default=0)
    rows: list[list[object]] = [
        [
            *(step, task.partition("/")[2], group, result.value, result.ci_low, result.ci_high),
            *(p_value(cells[of].value) if (of := (step, task, group, name)) in cells else None for name in PS),
            cells[of].value if (of := (step, task, group, TPR)) in cells else None,
            result.n,
        ]
        for (step, task, group, metric), result in cells.items()
        if metric == "auc" and task.startswith("membership/") and (group == READ or step == last)
    ]
    caption = "All scores against sealed samples: of read samples at each checkpoint, of other groups at the last"
    heads = ["step", "score", "group", "AUC", "low", "high", "p", "Holm", f"TPR at FPR {ALPHAS[0]:.0%}", "n"]
    return Table(caption, heads, rows) if rows else None


def share(value: float) -> str:
    """A share with three decimals, without its 0."""
    return f"{value:.3f}".removeprefix("0")


def gates(results: Sequence[Result], step: int, group: str) -> str | None:
    """AUC of each gate of a group at a step; with a warning when one distinguishes the group."""
    rows = [result for result in results if (result.step, result.group) == (step, group)]
    aucs = {row.task: row.value for row in rows if row.metric == "auc"}
    cells = [share(aucs[name]) if name in aucs else "-" for name in (f"gate/{kind}" for kind in GATES)]
    if not any(f"gate/{kind}" in aucs for kind in GATES):
        return None
    return ("ground truth suspect: " if suspicions(rows) else "") + " ".join(cells)


def conclusions(results: Sequence[Result]) -> Iterator[str]:
    """Tests of groups at the last checkpoint, copies, and at last whether the ground truth is suspect."""
    last = max((result.step for result in results), default=0)
    values = {(r.task, r.group, r.metric): r.value for r in results if r.step == last}
    for task, group, metric in values:
        if task.startswith("order_test/") and metric == "rho":
            line = (
                f"{task} at step {last:,}: rho {values[task, group, 'rho']:+.3f}, p {p_value(values[task, group, 'p'])}"
            )
            if (overall := (task, group, "rho_overall")) in values:
                p = p_value(values[task, group, "p_overall"])
                line += f" within epochs; {values[overall]:+.3f}, p {p} over all epochs"
            yield line
    inferred = [f"{group} {p_value(p)}" for (task, group, metric), p in values.items() if (task, metric) == INFERENCE]
    if inferred:
        yield f"dataset inference at step {last:,}: p of {', '.join(inferred)} (sealed: its halves, a check)"
    groups = [group for task, group, metric in values if (task, metric) == ("copies", "exact_members")]
    for group in groups:
        exact, near = (int(values["copies", group, f"{kind}_members"]) for kind in ("exact", "near"))
        if exact + near:
            yield f"copies at step {last:,}: {exact:,} exact and {near:,} near ones of {group} samples are sealed"
    yield from suspicions(results)
