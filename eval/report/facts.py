"""What the sections of a report have in common: the run, opened once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.report.record_summary import RecordSummary

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.run import RunDirectory


@dataclass(frozen=True)
class Facts:
    """A run, its corpus, its record and its checkpoints."""

    run: RunDirectory
    corpus: Corpus
    record: Record
    checkpoints: Sequence[Checkpoint]
    read: RecordSummary

    @classmethod
    def of(cls, run: RunDirectory) -> Facts:
        """Open a run; UserError when it has no record or no corpus."""
        from wellread.checkpoint import list_checkpoints
        from wellread.corpus.read import Corpus
        from wellread.record.reader import Record

        corpus, record = Corpus.open(run.corpus), Record.open(run.record)
        return cls(run, corpus, record, list_checkpoints(run.checkpoints), RecordSummary.of(record, corpus.n_trainable))

    @property
    def holdout_losses(self) -> list[tuple[int, float]]:
        """Step and loss on the sealed holdout of each checkpoint that has one, nats per target token."""
        of_all = [(checkpoint.step, checkpoint.manifest.get("holdout_loss")) for checkpoint in self.checkpoints]
        return [(step, float(loss)) for step, loss in of_all if loss is not None]
