"""What an evaluation is: one question asked of a run, one small class. `eval/registry.py` names them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from eval.needs import Need, a_checkpoint
from wellread.errors import UserError
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.section import Section
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Evaluation(ABC):
    """A question asked of a run.

    Fields are its settings. Each becomes a flag of `python -m eval NAME`, with the docstring under it as help, except
    those of `NO_FLAGS`.
    """

    run: RunDirectory

    name: ClassVar[str]
    """Name on the command line, and of its table `eval/NAME.parquet`."""
    summary: ClassVar[str]
    """One line for the help."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What a run must have; the first that it lacks is named."""

    @abstractmethod
    def results(self, reporter: Reporter) -> Iterator[Result]:
        """Yield the rows of its table."""

    def work(self) -> int:
        """How much there is to do, in the units in which `reporter` is told."""
        return 1

    def notes(self) -> Iterable[str]:
        """What is left out, and why; said before it begins."""
        return ()

    @classmethod
    def table(cls, run: RunDirectory) -> Path:
        """File of its results."""
        return run.eval / f"{cls.name}.parquet"

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """Heads and rows of what the terminal shows; by default every result."""
        heads = ["step", "task", "group", "metric", "value", "n"]
        return heads, [[getattr(result, head) for head in heads] for result in results]

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """What it adds to the report; None when it has nothing to say.

        Parameters
        ----------
        results
            Its table; empty where the run was not evaluated.
        """
        return None


@dataclass(frozen=True)
class PerCheckpoint(Evaluation, Generic[Kept]):
    """A question asked of each checkpoint: `score` is the costly part and keeps what it found, `measure` is quick.

    So `score` can be done for many checkpoints at a time, as one process each (``--scores_only``), and never twice.
    """

    _: KW_ONLY
    max_samples: int = 2000
    """Samples scored per group."""
    seed: int = 0
    """Seed of resampling and of the draw of samples."""
    steps: Sequence[int] | None = None
    """Checkpoints by step; None takes all."""
    device: str | None = None
    """Where the model runs; None takes CUDA when there is one, else the CPU."""

    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint,)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")

    @abstractmethod
    def size(self, step: int) -> int:
        """How much `score` has to do at `step`."""

    @abstractmethod
    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Kept:
        """Find what was kept, do what is missing, and keep it."""

    @abstractmethod
    def measure(self, checkpoint: Checkpoint, kept: Kept, reporter: Reporter) -> Iterator[Result]:
        """Yield the results of a checkpoint."""

    def headline(self, results: Sequence[Result]) -> str:
        """What is said of a checkpoint once it is done."""
        return f"{len(results)} results"

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints of `steps`, by step; UserError when there is none at one of them."""
        from wellread.checkpoint import list_checkpoints

        found = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(self.run.checkpoints)}
        for step in self.steps or []:
            if step not in found:
                there = ", ".join(map(str, found))
                raise UserError(f"{self.run.path}: no checkpoint at step {step}; choose from {there}")
        return [found[step] for step in sorted(set(self.steps or found))]

    def work(self) -> int:
        """Sum of the sizes of all steps."""
        return sum(self.size(checkpoint.step) for checkpoint in self.checkpoints)

    def results(self, reporter: Reporter) -> Iterator[Result]:
        """Score and measure one checkpoint after the other."""
        for checkpoint in self.checkpoints:
            kept = self.score(checkpoint, reporter)
            found = list(self.measure(checkpoint, kept, reporter))
            reporter.finish(checkpoint.step, self.headline(found))
            yield from found

    def result(self, checkpoint: Checkpoint, **measured: Any) -> Result:
        """A result at `checkpoint`, with the fields of `Result` that say what was measured."""
        from wellread.results import Result

        return Result(run=self.run.name, model=self._model, step=checkpoint.step, tokens=checkpoint.tokens, **measured)

    @cached_property
    def _model(self) -> str:
        return self.run.config().model.name


NO_FLAGS = {"run", "steps", "device"}
"""Fields of an evaluation that are no flags of their own: the command line says run and steps in other ways."""
