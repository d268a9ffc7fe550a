"""Trackers: one that is not installed is an error before anything starts; TensorBoard takes steps out of order."""

import importlib.util
from pathlib import Path

import pytest

from wellread.config import RunConfig, packages
from wellread.errors import UserError
from wellread.train.watch.trackers import TensorBoard, check, open_trackers


def test_missing_tracker_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check(RunConfig().watch)
    with pytest.raises(UserError) as refused:
        check(RunConfig.of(tracker="tensorboard,wandb").watch)
    assert str(refused.value) == (
        f"--tracker wandb: the package wandb is not installed; run: {packages.installing('wandb')}, "
        "or leave the flag out"
    )
    assert packages.installing("wandb").endswith("bin/python -m pip install wandb")


def test_tensorboard_is_the_default_and_purges_steps_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (first,) = open_trackers(RunConfig(), tmp_path, 0)
    assert isinstance(first, TensorBoard)
    for step in (1, 3, 2):
        first.scalars({"a": step / 2}, step)
    first.text("words", "**bold**", 2)
    first.close()
    (again,) = open_trackers(RunConfig(), tmp_path, 2)
    again.scalars({"a": 9.0}, 3)
    again.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert sorted((event.step, event.value) for event in events.Scalars("a")) == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert events.Tensors("words/text_summary")[0].tensor_proto.string_val == [b"**bold**"]
