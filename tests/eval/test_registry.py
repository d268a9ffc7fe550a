"""What a new evaluation gets from the registry, without changes to other files."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval.__main__ import main
from eval.evaluation import Evaluation, PerCheckpoint
from eval.kept import scores_of
from eval.progress import Reporter
from eval.registry import EVALUATIONS, per_checkpoint
from eval.section import Column, Section
from wellread.checkpoint import Checkpoint
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.results import Result, read
from wellread.run import RunDirectory
from wellread.scores import Scores

# --- a complete new evaluation


class Dummy(PerCheckpoint[Scores]):
    """Counts the samples that have a score above a threshold."""

    name: ClassVar[str] = "dummy"
    summary: ClassVar[str] = "samples with good scores"

    def size(self, step: int) -> int:
        return 4

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Scores:
        corpus = Corpus.open(self.run.corpus)
        return scores_of(self.run, checkpoint, corpus, np.arange(4), reporter, self.device, self.verify)

    def measure(self, checkpoint: Checkpoint, scores: Scores, reporter: Reporter) -> Iterator[Result]:
        good = float((scores.mean > self.seed).sum())
        yield self.result(checkpoint, task="dummy", metric="good", group="first four", value=good, n=4)

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        cells = {result.step: f"{result.value:g} good" for result in results}
        return Section(
            heading="Dummy",
            n="n",
            help="help",
            template="<p>{{ text }}</p>",
            values={"text": f"<b> {len(cells)}"},
            columns=[Column(("good",), cells)],
        )


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATIONS, "dummy", f"{__name__}:Dummy")


# --- what it gets from the registry


def goods(run: RunDirectory) -> list[tuple[int, float]]:
    return [(result.step, result.value) for result in read(run.eval / "dummy.parquet")]


def test_a_table_and_a_section(
    tmp_path: Path, dummy: None, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["dummy", str(run.path)]) == 0
    assert goods(run) == [(0, 0.0), (2, 4.0), (4, 4.0)]
    output = capsys.readouterr()
    assert output.out.splitlines()[:2] == [
        "step  task   group       metric   value  n",
        "   0  dummy  first four  good    0.0000  4",
    ]
    assert output.err.splitlines() == [f"step {step}: scored; 1 results" for step in (0, 2, 4)]
    page = (run.report / "index.html").read_text()
    assert '<h2 id="dummy">Dummy</h2>' in page
    assert "<p>&lt;b&gt; 3</p>" in page
    assert '<th scope="col">good</th>\n' in page
    assert "<td>0 good</td></tr>" in page
    assert "Not evaluated yet" in page  # in the section of membership


def test_a_run_that_cannot_be_written_is_refused_before_scoring(
    tmp_path: Path, dummy: None, scored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(Path, "touch", refuse)
    for flags in ([], ["--scores_only"]):
        with pytest.raises(UserError, match=r"run/eval: results cannot be written \(Read-only file system\); make it"):
            main(["dummy", str(run.path), *flags])
    assert scored == []


def test_its_flags_and_kept_scores(
    tmp_path: Path, dummy: None, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["dummy", str(run.path), "--steps", "2,step-4", "--seed", "98"]) == 0
    assert goods(run) == [(2, 2.0), (4, 2.0)]  # scores are 100, 99, 98, 97
    assert scored == [(2, [0, 1, 2, 3]), (4, [0, 1, 2, 3])]
    assert main(["dummy", str(run.path), "--seed", "99"]) == 0
    assert goods(run) == [(0, 0.0), (2, 1.0), (4, 1.0)]
    assert [step for step, _ in scored] == [2, 4, 0]
    with pytest.raises(UserError, match="no checkpoint at step 3; choose from 0, 2, 4"):
        main(["dummy", str(run.path), "--steps", "3"])
    with pytest.raises(UserError, match=r"unknown setting 'step': did you mean --steps\?"):
        main(["dummy", str(run.path), "--step", "3"])


def test_a_fan_out(tmp_path: Path, dummy: None, scored: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main(["parts", "dummy", str(run.path), "--seed", "99"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert parts == [
        ["dummy", str(run.path), "--seed", "99", "--steps", step, "--scores_only"] for step in ("0", "2", "4")
    ]
    assert [main(part) for part in parts] == [0, 0, 0]
    assert not (run.eval / "dummy.parquet").exists()
    assert len(scored) == 3
    assert main(["dummy", str(run.path), "--seed", "99"]) == 0
    assert goods(run) == [(0, 0.0), (2, 1.0), (4, 1.0)]
    assert len(scored) == 3


def test_it_is_in_the_help(dummy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert per_checkpoint() == ["membership", "forgetting", "memorization", "canaries", "marks", "generations", "dummy"]
    assert main(["--help"]) == 0
    assert "  dummy RUN         samples with good scores\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"eval none: unknown command; use read, verify, .*, dummy$"):
        main(["none"])


# --- an evaluation of the run instead of its checkpoints


class WholeRun(Evaluation):
    name: ClassVar[str] = "whole"
    summary: ClassVar[str] = "a number about the run"

    def results(self, reporter: Reporter) -> Iterator[Result]:
        yield Result(
            run=self.run.name, model="m", step=4, tokens=32, task="whole", metric="x", group="all", value=1.0, n=1
        )


def test_an_evaluation_of_the_run_cannot_be_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setitem(EVALUATIONS, "whole", f"{__name__}:WholeRun")
    run = make_run(tmp_path / "run")
    assert main(["whole", str(run.path)]) == 0
    assert [result.metric for result in read(run.eval / "whole.parquet")] == ["x"]
    with pytest.raises(
        UserError, match="--fan_out: eval whole cannot be split by checkpoint; it works with membership"
    ):
        main(["parts", "whole", str(run.path)])
    with pytest.raises(UserError, match="unknown setting 'steps'"):
        main(["whole", str(run.path), "--steps", "4"])
