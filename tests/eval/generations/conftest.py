"""A run whose checkpoints have written texts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.evaluate import evaluate
from eval.generations.evaluation import Generations
from wellread.results import Result
from wellread.run import RunDirectory

SETTINGS = {"prompts": 6, "new_tokens": 12, "max_samples": 10}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches with which the texts were written: other ones would be other settings."""
    monkeypatch.setattr("eval.generations.prompts.BATCH", 4)


@pytest.fixture(scope="package")
def written(tiny_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, list[Result]]:
    """A copy of the tiny run, and the results of its generations: batches of four prompts. Read it, never write."""
    folder = tmp_path_factory.mktemp("written") / "run"
    shutil.copytree(tiny_run.path, folder, symlinks=False)
    run = RunDirectory.open(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.generations.prompts.BATCH", 4)
        return run, evaluate(Generations(run, **SETTINGS), progress=False)


@pytest.fixture
def copy_of_written(written: tuple[RunDirectory, list[Result]], tmp_path: Path) -> RunDirectory:
    """A copy of that run, which a test may change."""
    shutil.copytree(written[0].path, tmp_path / "run", symlinks=False)
    return RunDirectory.open(tmp_path / "run")
