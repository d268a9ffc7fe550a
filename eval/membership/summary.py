"""Results of membership in a line and in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.groups import READ, SEALED, SHUFFLED, UNREAD
from eval.section import with_interval
from eval.separation import ALPHAS

if TYPE_CHECKING:
    from wellread.results import Result

HEADS = ["step", "score", "AUC read", "AUC unread", "labels shuffled", "TPR at 10% FPR", "loss read", "loss sealed"]


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
    """One row for the first score at each checkpoint, and for each other score at the last one."""
    cells = {(result.step, result.task, result.group, result.metric): result for result in results}
    tasks, steps = list(dict.fromkeys(result.task for result in results)), sorted({result.step for result in results})
    pairs = [(step, task) for step in steps for task in (tasks[:1] if step != steps[-1] else tasks)]

    def value(key: tuple[int, str], group: str, metric: str) -> float | None:
        result = cells.get((*key, group, metric))
        return result.value if result else None

    def auc_of(key: tuple[int, str], group: str) -> str | None:
        result = cells.get((*key, group, "auc"))
        return with_interval(result) if result else None

    rows: list[list[object]] = [
        [
            key[0],
            key[1].partition("/")[2],
            *(auc_of(key, group) for group in (READ, UNREAD, SHUFFLED)),
            value(key, READ, f"tpr_at_fpr_{ALPHAS[0]:g}"),
            *(value(key, group, "mean_loss") for group in (READ, SEALED)),
        ]
        for key in pairs
    ]
    return HEADS, rows
