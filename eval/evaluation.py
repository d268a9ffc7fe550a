"""Base classes of evaluations. Each evaluation is one small class, listed in `eval/registry.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from eval.needs import Need, a_checkpoint
from wellread.errors import UserError
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from eval.items import Items
    from eval.progress import Reporter
    from eval.section import Picture, Section
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result

ScoresType = TypeVar("ScoresType")


@dataclass(frozen=True)
class Evaluation(ABC):
    """An evaluation of a run.

    Its fields are settings. Each becomes a flag of `wellread NAME`, with the docstring below it as help, except
    those in `NO_FLAGS`.
    """

    run: RunDirectory

    name: ClassVar[str]
    """Name on the command line, and in its table `eval/NAME.parquet`."""
    summary: ClassVar[str]
    """One line for the help."""
    several: ClassVar[bool] = False
    """Whether it compares several runs: then its field `more_runs` has the further runs of the command line."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Fields that have no meaning for it and do not become flags."""
    switches: ClassVar[Mapping[str, str]] = {}
    """Fields that are flags without a value, each with its help."""
    more_help: ClassVar[str] = ""
    """Added to the example at the end of its help."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What a run must have; an error names the first that is missing."""

    @abstractmethod
    def results(self, reporter: Reporter) -> Iterator[Any]:
        """Yield the rows of its table: `Result`, unless it has another schema."""

    @classmethod
    def applies(cls, run: RunDirectory) -> bool:
        """Whether the run can be evaluated at all; otherwise the report does not name the evaluation."""
        return True

    def work(self) -> int:
        """Total amount of work, in the units of `Reporter.move_to`."""
        return 1

    def notes(self) -> Iterable[str]:
        """What is left out, and why; shown at the start."""
        return ()

    def listing(self) -> tuple[list[str], list[list[object]], str] | None:
        """Heads, rows and a remark of a list that is printed instead of an evaluation; None unless it is requested."""
        return None

    @classmethod
    def items(cls, run: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        """Values of single items at a checkpoint that it has kept, by which saturation is judged; by default none."""
        yield from ()

    def write(self, results: Sequence[Any]) -> None:
        """Write its table; override it, and `stored`, for a table with another schema."""
        from wellread.results import write

        write(self.table(self.run), results)

    @classmethod
    def table(cls, run: RunDirectory) -> Path:
        """File of its results."""
        return run.eval / f"{cls.name}.parquet"

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """Heads and rows of the table on the terminal; by default all results."""
        heads = ["step", "task", "group", "metric", "value", "n"]
        return heads, [[getattr(result, head) for head in heads] for result in results]

    @classmethod
    def conclusions(cls, results: Sequence[Result]) -> Iterable[str]:
        """Lines below the table on the terminal: what the table does not show; warnings come last."""
        return ()

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Its section of the report, by default its overview; None when there is nothing to show yet.

        Without a section, the report says that the run was not evaluated, and names the command that does it.

        Parameters
        ----------
        results
            Rows of its table; empty when the run was not evaluated.
        """
        from eval.section import Section, Table

        if not results:
            return None
        heads, rows = cls.overview(results)
        return Section(
            heading=f"{cls.name.capitalize()}: {cls.summary}",
            n=f"{len(results):,} results in eval/{cls.name}.parquet.",
            help="The table shows the main ones; the column n says how many samples each is about.",
            pictures=cls.pictures(results),
            tables=[Table(f"Results of {cls.name}", heads, rows)],
        )

    @classmethod
    def pictures(cls, results: Sequence[Result]) -> Sequence[Picture]:
        """Pictures of its default section in the report."""
        return ()

    @classmethod
    def stored(cls, run: RunDirectory) -> list[Any]:
        """Rows of its table, none when there is no table; override it for a table with another schema."""
        from wellread.results import read

        return read(table) if (table := cls.table(run)).exists() else []


@dataclass(frozen=True)
class PerCheckpoint(Evaluation, Generic[ScoresType]):
    """An evaluation of each checkpoint: `score` is expensive and keeps its scores on disk, `measure` is fast.

    So `score` can run for many checkpoints in parallel, in one process each (``--scores_only``), and only once.
    """

    _: KW_ONLY
    max_samples: int = 2000
    """Samples scored per group."""
    seed: int = 0
    """Seed for resampling and for drawing samples."""
    steps: Sequence[int] | None = None
    """Steps of the checkpoints; None: all checkpoints."""
    device: str | None = None
    """Where the model runs; None: CUDA if there is a GPU, otherwise the CPU."""
    verify: bool = False
    """Whether to hash the files of models again that have not changed since the last evaluation."""

    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint,)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")

    @abstractmethod
    def size(self, step: int) -> int:
        """Amount of work of `score` at `step`."""

    @abstractmethod
    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> ScoresType:
        """Load the kept scores, compute the missing ones, and keep them."""

    @abstractmethod
    def measure(self, checkpoint: Checkpoint, scores: ScoresType, reporter: Reporter) -> Iterator[Result]:
        """Yield the results of a checkpoint."""

    def headline(self, results: Sequence[Result]) -> str:
        """One line about the results of a checkpoint."""
        return f"{len(results)} results"

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints at `steps`, ascending; UserError when one is missing."""
        from wellread.checkpoint import list_checkpoints

        by_step = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(self.run.checkpoints)}
        for step in self.steps or []:
            if step not in by_step:
                steps = ", ".join(map(str, by_step))
                raise UserError(f"{self.run.path}: no checkpoint at step {step}; choose from {steps}")
        return [by_step[step] for step in sorted(set(self.steps or by_step))]

    def work(self) -> int:
        """Sum of the sizes of all steps."""
        return sum(self.size(checkpoint.step) for checkpoint in self.checkpoints)

    def results(self, reporter: Reporter) -> Iterator[Result]:
        """Score and measure one checkpoint after the other."""
        for checkpoint in self.checkpoints:
            scores = self.score(checkpoint, reporter)
            rows = list(self.measure(checkpoint, scores, reporter))
            reporter.finish(checkpoint.step, self.headline(rows))
            yield from rows

    def result(self, checkpoint: Checkpoint, **measured: Any) -> Result:
        """A result at `checkpoint`; `measured` are the other fields of `Result`."""
        from wellread.results import Result

        return Result(run=self.run.name, model=self._model, step=checkpoint.step, tokens=checkpoint.tokens, **measured)

    @cached_property
    def _model(self) -> str:
        return self.run.config().model.name


NO_FLAGS = {"run", "more_runs", "steps", "device", "verify"}
"""Fields of an evaluation that do not become flags; the command line sets run, steps and verify in other ways."""
