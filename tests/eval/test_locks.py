"""Two evaluations of one checkpoint at the same time: none drops what the other has kept, nothing is computed twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.generations import prompts, sealed, texts, writing
from eval.generations.evaluation import Generations
from eval.locks import locked
from eval.memorization import generated
from eval.memorization.generated import Generated, Work
from eval.progress import Reporter
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.run import RunDirectory

SECONDS = 0.05
"""How long a batch takes, so that two evaluations would overlap."""


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Results of functions that begin together, each in a thread; a lock is that of an open file, so threads wait."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def loaded(*_: object) -> Iterator[tuple[Any, str]]:
        yield SimpleNamespace(config=None), "cpu"

    monkeypatch.setattr("wellread.models.load.loaded", loaded)
    for module in ("eval.generations.evaluation", "eval.memorization.generated"):
        monkeypatch.setattr(f"{module}.refuse_damaged", lambda *_, **__: None)  # its temporary file is per process


def test_scores_of_two_processes_are_all_kept(copied_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One asks for samples 0 to 59, the other for 40 to 99; a batch has 8 of them."""
    checkpoint, calls = list_checkpoints(copied_run.checkpoints)[-1], list[int]()

    def generate(_model: object, _work: object, ids: Any, _device: str) -> list[float]:
        calls.extend(ids.tolist())
        time.sleep(SECONDS)
        return [i / 100 for i in ids.tolist()]

    monkeypatch.setattr(generated, "BATCH", 8)
    monkeypatch.setattr(generated, "generate", generate)
    samples: Any = SimpleNamespace(lengths=lambda ids: np.full(len(ids), 9))
    progress = [list[int](), list[int]()]

    def ask(first: int, stop: int, counts: list[int]) -> Callable[[], Any]:
        file = Generated.at(copied_run, checkpoint, 8, 8)
        work, ids = Work(samples, 8, 8, None), np.arange(first, stop)
        return lambda: generated.scores(copied_run, checkpoint, file, work, ids, counts.append)

    low, high = at_once(ask(0, 60, progress[0]), ask(40, 100, progress[1]))
    assert low.tolist() == [i / 100 for i in range(60)]
    assert high.tolist() == [i / 100 for i in range(40, 100)]
    assert sorted(calls) == list(range(100))
    assert Generated.at(copied_run, checkpoint, 8, 8).read() == {i: i / 100 for i in range(100)}
    assert [sum(counts) for counts in progress] == [60, 60]


def test_texts_of_two_processes_are_all_kept(copied_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same prompts: each text is written once. Other prompts replace them only when they are complete."""
    calls = fake_texts(monkeypatch)
    checkpoint = list_checkpoints(copied_run.checkpoints)[-1]

    def ask(seed: int) -> Callable[[], Any]:
        evaluation = Generations(copied_run, prompts=6, new_tokens=12, max_samples=10, seed=seed)
        return lambda: evaluation.score(checkpoint, Reporter(1, show=False))

    first, second = at_once(ask(0), ask(0))
    assert first.texts == second.texts
    assert len(first.texts) == 12
    assert sorted(calls) == sorted({(method, number, 0) for method in texts.METHODS for number in (0, 1)})
    assert len(pq.read_table(texts.path(copied_run, checkpoint))) == 12
    first, second = at_once(ask(1), ask(2))
    assert {text.seed for text in first.texts if text.method == "sampled"} == {1}
    assert {text.seed for text in second.texts if text.method == "sampled"} == {2}
    assert len(first.texts) == len(second.texts) == 12


def fake_texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Replaces the model; returns the calls: method, batch and seed."""
    calls = list[tuple[str, int, int]]()

    def write(work: writing.Work, _checkpoint: Any, _model: Any, _device: str, method: str, batch: Any) -> Any:
        calls.append((method, batch.number, work.seed))
        time.sleep(SECONDS)
        return [
            texts.Text(prompt_id=p.id, method=method, batch=batch.number, seed=work.seed, tokens=[1], text="a")
            for p in batch.prompts
        ]

    def compute(_model: Any, _samples: Any, ids: Any, *_: Any) -> sealed.SealedLosses:
        return sealed.SealedLosses(sample_id=ids, n_targets=ids, n_bytes=ids, loss=ids.astype(float))

    monkeypatch.setattr(prompts, "BATCH", 4)
    monkeypatch.setattr(writing, "write", write)
    monkeypatch.setattr(sealed, "compute", compute)
    monkeypatch.setattr("wellread.models.continuations.positions", lambda _: 512)
    return calls


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "step-1.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"step-1\.lock"), locked(tmp_path / "step-1.parquet"):
        raise AssertionError("locked")
    assert (tmp_path / "precious").read_text() == "content"
