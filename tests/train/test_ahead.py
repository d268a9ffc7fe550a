"""The path `ahead`: the device decides as the host does, no step waits, and record and weights stay as they are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import other_device
from support.engine_ranks import one_process

from scripts.gpu_check.synthetic import Trial, make_run, model_of
from scripts.gpu_check.weights import RandomSource
from wellread.checkpoint import list_checkpoints
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.train import loop
from wellread.train.ahead import DeviceGuard
from wellread.train.engines.torch_engine import TorchEngine
from wellread.train.guard import LEAST, WINDOW, Guard, length_of_halves, mean_loss, sum_of_halves
from wellread.train.watch.monitor import Monitor, StepStats

# --- the guard on the device

LOSSES = st.lists(st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.0, 1e30, float("inf"), float("nan")]), max_size=2 * WINDOW)


@given(LOSSES, st.sampled_from([None, 1.2, 2.0]), st.integers(0, WINDOW))
def test_the_device_decides_as_the_host(losses: list[float], factor: float | None, first: int) -> None:
    past = [(loss, not np.isfinite(loss)) for loss in losses[:first]]
    host = Guard(factor, past)
    device = DeviceGuard(host, torch.device("cpu"))
    for number, loss in enumerate(losses[first:]):
        value = torch.tensor(loss, dtype=torch.float64)
        bad = host.verdict(loss) is not None
        assert bool(device.verdict(value)) == bad
        skipped = bad or number % 5 == 4  # as after a gradient that is not finite
        host.past.append((loss, skipped))
        device.note(value, torch.tensor(skipped))


def test_the_median_of_an_even_number_of_losses_is_between_two() -> None:
    device = DeviceGuard(Guard(2.0, [(1.0, False)] * (LEAST // 2) + [(3.0, False)] * (LEAST // 2)), torch.device("cpu"))
    assert not device.verdict(torch.tensor(4.0, dtype=torch.float64))
    assert device.verdict(torch.tensor(np.nextafter(4.0, 5.0)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100])
def test_a_sum_of_halves_has_one_rounding_on_every_device(count: int) -> None:
    values = np.random.default_rng(count).lognormal(0, 20, count)
    padded = np.zeros(length_of_halves(count))
    padded[:count] = values
    assert len(padded) < 2 * count
    total = sum_of_halves(padded)
    assert float(sum_of_halves(torch.from_numpy(padded))) == total
    assert total == pytest.approx(values.sum(), rel=1e-15)
    n_targets = np.arange(1, count + 1)
    assert mean_loss(np.full(count, 2.5, np.float32), n_targets) == 2.5


# --- the loop

STEPS = 6
Train = Callable[..., RunDirectory]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank; the loop's handlers of signals are removed afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    with one_process(tmp_path_factory.mktemp("group")):
        yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


SETTINGS: dict[str, Any] = {
    "model": "tiny", "seq_len": 32, "batch_size": 8, "micro_batch_size": 4, "save_every": 4, "keep_states": 1,
    "fast": "on", "generations": 0, "dtype": "fp32",
}  # fmt: skip


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train a run in this process with some of the fast paths; its samples have different lengths."""

    def run(name: str, paths: tuple[str, ...], pack: bool = False, steps: int = STEPS, **settings: Any) -> RunDirectory:
        flags = SETTINGS | {"pack": pack} | settings
        machine = {"device": "cpu", "ranks_per_node": 1}
        pieces = (12, 5, 8) if pack else (32, 17, 30, 23)
        trial = Trial(settings=flags, machine=machine, paths=paths, pieces=pieces, warm=0, steps=steps)
        (tmp_path / name).mkdir()
        run = make_run(trial, tmp_path / name)
        assert go_on(run) in (0, 128 + signal.SIGTERM)
        return run

    return run


def go_on(run: RunDirectory) -> int:
    """Train a run, or resume it; return the exit code."""
    source = RandomSource.of_spec(model_of(run))
    return loop.train(run, lambda: source, run.log / "rank-0.log")


Change = Callable[[int, Any], tuple[float, float]]


def change_passes(patch: pytest.MonkeyPatch, change: Change) -> None:
    """Call `change` with the number of a batch and each of its micro-batches, before they are read.

    It returns a summand of the losses, and a factor of the gradient.
    """
    queue, forward_backward = loop.TrainingLoop._queue, TorchEngine.forward_backward
    step = 0

    def noted(self: loop.TrainingLoop) -> Any:
        nonlocal step
        step = self.step
        return queue(self)

    def changed(self: TorchEngine, batch: Any, scale: float, last: bool) -> torch.Tensor:
        summand, factor = change(step, batch)
        return forward_backward(self, batch, scale * factor, last) + summand

    patch.setattr(loop.TrainingLoop, "_queue", noted)
    patch.setattr(TorchEngine, "forward_backward", changed)


def files_of(run: RunDirectory) -> dict[str, bytes]:
    """The record, and the weights and the optimizer's state of each checkpoint."""
    paths = [*run.record.glob("*.parquet"), run.record / "head.json"]
    paths += [path for path in run.checkpoints.glob("*/*/*") if path.suffix in (".safetensors", ".pt")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in sorted(paths)}


def manifests(run: RunDirectory) -> list[dict[str, Any]]:
    names = ("step", "tokens", "skipped", "record", "holdout_loss")
    return [{name: each.manifest[name] for name in names} for each in list_checkpoints(run.checkpoints)]


@pytest.mark.parametrize("pack", [False, True], ids=["samples", "packed"])
def test_record_and_weights_are_equal_bit_by_bit(train: Train, pack: bool) -> None:
    usual, ahead = train("usual", (), pack), train("ahead", ("ahead",), pack)
    assert files_of(usual) == files_of(ahead)
    assert len(files_of(usual)) > 5
    assert manifests(usual) == manifests(ahead)
    assert [each["step"] for each in manifests(ahead)] == [0, 4, STEPS]


@pytest.mark.parametrize(
    ("paths", "pack"),
    [(("ahead",), False), (("ahead",), True), (("varlen", "ahead"), False), (("varlen", "ahead"), True)],
    ids=["samples", "packed", "rows", "packed rows"],
)
def test_no_step_waits_for_the_device(
    train: Train, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...], pack: bool
) -> None:
    """Through the real loop, with the record and a guard against spikes."""
    counts, take_step = [], loop.TrainingLoop.take_step

    def counted(self: loop.TrainingLoop) -> int:
        with other_device.waits(monkeypatch) as watch:
            code = take_step(self)
        counts.append(watch.places)
        return code

    other_device.use(monkeypatch)
    monkeypatch.setattr(loop.TrainingLoop, "take_step", counted)
    run = train("run", paths, pack, steps=3, spike_factor=3.0, on_bad_loss="skip")
    assert Record.open(run.record).batches == 3
    assert counts == [[], [], []]
    if not pack:
        train("usual", paths[:-1], steps=1)
        assert counts[-1]  # the test sees waits


def test_digests_come_from_the_tensors_on_the_device(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes on the device before the pass is in the record; the tensors on the host no longer matter."""
    altered: list[int] = []

    def wiped(tensor: torch.Tensor, device: object) -> torch.Tensor:
        copy = other_device.put(tensor)
        tensor.zero_()
        return copy

    def alter(step: int, batch: Any) -> tuple[float, float]:
        if step == 2 and not altered:
            altered.append(int(batch.sample_ids[1]))
            batch.tokens[1, 3] += 1
        return 0.0, 1.0

    other_device.use(monkeypatch)
    monkeypatch.setattr("wellread.corpus.batch.copied_to", wiped)
    change_passes(monkeypatch, alter)
    run = train("run", ("ahead",))
    corpus, rows = Corpus.open(run.corpus), Record.open(run.record).table(["batch_id", "sample_id", "digest"])
    different = [row for row in rows.to_pylist() if row["digest"] != corpus.digest(row["sample_id"])]
    assert [(row["batch_id"], row["sample_id"]) for row in different] == [(2, altered[0])]
    assert len(rows) == 8 * STEPS


def test_bad_batches_are_skipped_as_usual(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite, a gradient that is not, and a loss far above the median of those before."""
    faults = {1: (float("nan"), 1.0), 3: (0.0, float("inf")), LEAST + 3: (400.0, 1.0)}
    change_passes(monkeypatch, lambda step, batch: faults.get(step, (0.0, 1.0)))
    losses: list[float] = []
    displays: list[float] = []
    note, show = DeviceGuard.note, Monitor.step

    def noted(self: DeviceGuard, loss: torch.Tensor, skipped: torch.Tensor) -> None:
        losses.append(float(loss))
        note(self, loss, skipped)

    def displayed(self: Monitor, stats: StepStats) -> None:
        displays.append(stats.loss)
        show(self, stats)

    settings: dict[str, Any] = {"steps": LEAST + 6, "spike_factor": 1.5, "on_bad_loss": "skip"}
    usual = train("usual", (), **settings)
    monkeypatch.setattr(DeviceGuard, "note", noted)
    monkeypatch.setattr(Monitor, "step", displayed)
    ahead = train("ahead", ("ahead",), **settings)
    assert files_of(usual) == files_of(ahead)
    assert manifests(usual) == manifests(ahead)
    assert Record.open(ahead.record).skipped().tolist() == list(faults)
    np.testing.assert_array_equal(losses, displays)  # bit by bit, and as many


@pytest.mark.parametrize("fault", [(float("nan"), 1.0), (0.0, float("inf"))], ids=["loss", "gradient"])
def test_a_bad_batch_stops_the_run_and_is_named(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[float, float]
) -> None:
    """The checkpoint before it is kept, although it is still being written."""
    change_passes(monkeypatch, lambda step, batch: fault if step == 4 else (0.0, 1.0))
    opened, open_monitor = [], loop.open_monitor
    monkeypatch.setattr(loop, "open_monitor", lambda *of: opened.append(open_monitor(*of)) or opened[-1])
    write = TorchEngine._write
    monkeypatch.setattr(TorchEngine, "_write", lambda *of: time.sleep(0.5) or write(*of))
    messages = []
    for name, paths in (("usual", ()), ("ahead", ("ahead",))):
        with pytest.raises(FloatingPointError, match=r"batch 4: .* the weights were not updated") as error:
            train(name, paths)
        (folder,) = tmp_path.glob(f"{name}/**/checkpoints")
        assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [0, 4]  # still in writing at the error
        messages.append(str(error.value))
        opened[-1].close()  # otherwise the end of the process does it
    assert messages[0] == messages[1]


def test_a_signal_ends_the_run_after_a_step_that_is_recorded(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resumes, and leaves the record and the weights of a run that was not stopped."""
    uninterrupted = train("uninterrupted", ())

    def stop(step: int, batch: Any) -> tuple[float, float]:
        if step == 2 and not list_checkpoints(run_folder / "run" / "checkpoints")[1:]:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0, 1.0

    run_folder = uninterrupted.path.parent.parent / "stopped"
    with monkeypatch.context() as patch:
        change_passes(patch, stop)
        stopped = train("stopped", ("ahead",))
    last = list_checkpoints(stopped.checkpoints)[-1]
    assert last.step == 3
    assert Record.open(stopped.record).batches == 3
    assert last.manifest["record"]["head"] == Record.open(stopped.record).head
    assert last.manifest["tokens"] == Corpus.open(stopped.corpus).lengths(np.arange(24)).sum()
    assert go_on(stopped) == 0
    tables = [Record.open(each.record).table() for each in (uninterrupted, stopped)]
    assert tables[0].equals(tables[1])
    final = f"checkpoints/step-{STEPS:08d}/model/model.safetensors"
    assert (uninterrupted.path / final).read_bytes() == (stopped.path / final).read_bytes()


def test_only_the_torch_engine_has_it() -> None:
    spec = find("pythia-410m")
    config = resolve(RunConfig.of(model=spec.name, data="dolly", steps=10, fast="on", strategy="zero2"), spec)
    counts = Counts(samples=500, trainable=400, sealed=100, exact=True)
    plan = make_plan(config, spec, Machine(device="cuda", gpu_mem=80, host_mem=500), counts)
    assert "ahead: not with the deepspeed engine" in plan.fast_reason
