"""Curves of all metrics of a run, from the values of single items that its evaluations have kept."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.saturation.curve import Curve
from wellread.errors import UserError
from wellread.units import plural

if TYPE_CHECKING:
    from eval.items import Items
    from wellread.checkpoint import Checkpoint
    from wellread.run import RunDirectory

FEWEST_CHECKPOINTS = 3


@dataclass(frozen=True)
class MetricCurve:
    """A curve, its checkpoints, and the form that may be fitted to it."""

    curve: Curve
    checkpoints: Sequence[Checkpoint]
    form: str | None
    flags: str
    """How it was measured."""


def curves_of(run: RunDirectory, only: Collection[str] = ()) -> list[MetricCurve]:
    """Curves of the metrics of a run.

    Parameters
    ----------
    only
        Names of metrics, with or without their group: `greedy/words`, or `words` of all groups. Empty: all metrics.

    Raises
    ------
    UserError
        When there are no values, or only at one or two checkpoints; when a name is unknown; when the items or the flags
        of any metric are not the same at all checkpoints, because the summary has all metrics; when a value is not
        finite.
    """
    from wellread.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(run.checkpoints)
    if len(checkpoints) < FEWEST_CHECKPOINTS:
        raise UserError(
            f"{run.path}: has {plural(len(checkpoints), 'checkpoint')}, and saturation needs at least "
            f"{FEWEST_CHECKPOINTS}; train further, or with a smaller --save_every"
        )
    values: dict[str, list[tuple[Checkpoint, Items]]] = {}
    for checkpoint, items in _items(run, checkpoints):
        values.setdefault(items.metric, []).append((checkpoint, items))
    if not values:
        raise UserError(f"{run.path}: no checkpoint has values of single texts; run wellread generations {run.path}")
    _refuse_unknown(only, values, run)
    for metric, points in values.items():
        _refuse_different(run, metric, points)
    return [
        _curve(run, metric, points)
        for metric, points in values.items()
        if not only or metric in only or metric.rpartition("/")[2] in only
    ]


def _items(run: RunDirectory, checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[Checkpoint, Items]]:
    from eval.registry import evaluations

    for checkpoint in checkpoints:
        for kind in evaluations():
            for items in kind.items(run, checkpoint):
                yield checkpoint, items


def _refuse_unknown(only: Collection[str], values: Collection[str], run: RunDirectory) -> None:
    names = {*values, *(metric.rpartition("/")[2] for metric in values)}
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only {unknown[0]}: {run.path} has no such metric; choose from {', '.join(values)}")


def _refuse_different(run: RunDirectory, metric: str, points: list[tuple[Checkpoint, Items]]) -> None:
    """Refuse a metric whose items or flags are not the same at all checkpoints."""
    first_step, first = points[0][0].step, points[0][1]
    for checkpoint, items in points:
        if items.flags != first.flags:
            raise UserError(
                f"{run.path}: {metric} was measured with {items.flags} at step {checkpoint.step}, with {first.flags} "
                f"at step {first_step}; run wellread generations {run.path} for all checkpoints with the same flags"
            )
        if not np.array_equal(items.ids, first.ids):
            raise UserError(
                f"{run.path}: {metric} at step {checkpoint.step} has other texts than at step {first_step}; run "
                f"wellread generations {run.path} for all checkpoints with the same flags"
            )


def beyond(run: RunDirectory, last: int) -> Iterator[str]:
    """That the run has checkpoints after `last`, the last step of which values are compared; nothing if it has none."""
    from wellread.checkpoint import list_checkpoints

    end = max((checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)), default=last)
    if last < end:
        yield (
            f"verdicts are about the steps up to {last:,}, the run has checkpoints up to {end:,}; to compare all: "
            f"wellread generations {shlex.quote(str(run.path))} --steps all, then saturation again"
        )


def refuse_different_runs(runs: Sequence[tuple[RunDirectory, Sequence[MetricCurve]]]) -> None:
    """Refuse several runs of which a metric that they share was not measured with the same flags.

    Raises
    ------
    UserError
        Names the metric, the runs and the flags.
    """
    first: dict[str, tuple[RunDirectory, str]] = {}
    for run, curves in runs:
        for each in curves:
            other, flags = first.setdefault(each.curve.metric, (run, each.flags))
            if each.flags != flags:
                raise UserError(
                    f"{each.curve.metric} was measured with {flags} in {other.path}, with {each.flags} in {run.path}; "
                    "run wellread generations for both with the same flags"
                )


def _curve(run: RunDirectory, metric: str, points: list[tuple[Checkpoint, Items]]) -> MetricCurve:
    checkpoints, items = [checkpoint for checkpoint, _ in points], [item for _, item in points]
    steps = [checkpoint.step for checkpoint in checkpoints]
    if len(points) < FEWEST_CHECKPOINTS:
        raise UserError(
            f"{run.path}: {metric} has values at {plural(len(points), 'checkpoint')} "
            f"({', '.join(map(str, steps))}), and saturation needs at least {FEWEST_CHECKPOINTS}; run "
            f"wellread generations {run.path} --steps all"
        )
    for step, item in zip(steps, items, strict=True):
        if not np.isfinite(item.values).all():
            bad = item.ids[np.argmin(np.isfinite(item.values))]
            raise UserError(f"{run.path}: {metric} of item {bad} at step {step} is not finite; the run has diverged")
    curve = Curve(
        metric=metric,
        steps=np.array(steps),
        values=np.stack([item.values for item in items], axis=1),
        documents=items[0].documents,
        item_sizes=items[0].sizes,
    )
    return MetricCurve(curve, checkpoints, items[0].form, items[0].flags)
