"""Results as scalars of TensorBoard in `tb/eval-NAME/`, which each evaluation writes again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wellread.results import Result
    from wellread.run import RunDirectory

METRICS = ("auc", "mean_loss", "tpr_at_fpr_0.1", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")


def write_scalars(run: RunDirectory, name: str, results: Sequence[Result]) -> None:
    """Write each finite result of `METRICS` as the scalar TASK/METRIC/GROUP at its step.

    torch is not imported, because that takes seconds.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = run.path / "tb" / f"eval-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    writer = EventFileWriter(str(folder))
    for result in results:
        if result.metric in METRICS and math.isfinite(result.value):
            tag = f"{result.task}/{result.metric}/{result.group}"
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=result.value)])
            writer.add_event(Event(step=result.step, summary=summary, wall_time=result.step))
    writer.close()
