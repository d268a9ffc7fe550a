"""The gate: numbers compared by hand, and a real run in a control group that is too small.

A disk that is too small: test_full_disk.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.run import RunDirectory
from wellread.train import gate
from wellread.train.gate import Room, shortages
from wellread.units import GIB, MIB

NEEDS = {
    "strategy": "zero3-nvme", "gpu_bytes": 20 * GIB, "host_bytes": 40 * GIB, "disk_bytes": 100 * GIB,
    "nvme_bytes": 60 * GIB, "parts": {"gpu": {"weights": 18 * GIB, "CUDA context": 2 * GIB}},
}  # fmt: skip
PLAN = Plan(
    model="tiny", machine=Machine(cluster="slurm", device="cuda", nodes=2, ranks_per_node=2),
    counts=Counts(samples=4, trainable=4, sealed=0, exact=True), batch_size=4, micro_batch_size=1, accumulation=1,
    dtype="bf16", engine="deepspeed", strategy="zero3-nvme", strategy_reason="", strategies=(NEEDS,), seq_len=8,
    steps=1, epochs=1.0, warmup_steps=0, save_steps=(0, 1),
)  # fmt: skip
ROOMS = [
    Room(node="n1", host_free=38 * GIB, host_held=GIB, gpu_free=18 * GIB, disk_free=90 * GIB, disk_held=10 * GIB,
         nvme_free=60 * GIB),
    Room(node="n1", host_free=39 * GIB, host_held=GIB, gpu_free=18 * GIB),
    Room(node="n2", host_free=38 * GIB, host_held=GIB, gpu_free=18 * GIB, nvme_free=60 * GIB),
    Room(node="n2", host_free=39 * GIB, host_held=GIB, gpu_free=18 * GIB),
]  # fmt: skip
"""Just enough of everything: of GPUs less the context, of host memory with what two ranks hold, of disk with what is
saved."""


def with_room(rank: int, **changed: Any) -> list[Room]:
    return [replace(room, **changed) if number == rank else room for number, room in enumerate(ROOMS)]


@pytest.mark.parametrize(
    ("rank", "changed", "expected"),
    [
        (0, {}, []),
        (1, {"host_free": 37 * GIB}, ["n1 has 39.00 GiB of host memory, 40.00 are needed"]),
        (3, {"host_held": 0}, ["n2 has 39.00 GiB of host memory, 40.00 are needed"]),
        (2, {"gpu_free": 17.5 * GIB}, ["n2 has 17.50 GiB of GPU 0, 18.00 are needed"]),
        (3, {"gpu_free": 0}, ["n2 has 0.00 GiB of GPU 1, 18.00 are needed"]),
        (0, {"disk_held": 5 * GIB}, ["n1 has 90.00 GiB of disk for checkpoints, 95.00 are needed"]),
        (0, {"disk_held": 200 * GIB, "disk_free": 0}, []),
        (2, {"nvme_free": 59 * GIB}, ["n2 has 59.00 GiB of NVMe, 60.00 are needed"]),
        (0, {"nvme_free": 90 * GIB, "nvme_is_disk": True}, ["n1 has 90.00 GiB of NVMe, 150.00 are needed"]),
    ],
)
def test_what_is_short(rank: int, changed: dict[str, Any], expected: list[str]) -> None:
    assert shortages(PLAN, with_room(rank, **changed)) == expected


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Room]], None]:
    """Let the ranks find this room; the exchange between them is tested by the runs below."""

    def hear(rooms: list[Room]) -> None:
        monkeypatch.setattr(gate, "look", lambda *_: None)
        monkeypatch.setattr("wellread.train.ranks.gather_objects", lambda _: rooms)

    return hear


def test_the_refusal_is_one_line_that_names_the_first_shortages(heard: Callable[[list[Room]], None]) -> None:
    heard([replace(room, gpu_free=GIB) for room in ROOMS])
    with pytest.raises(UserError, match="too little is free for zero3-nvme") as caught:
        gate.check(RunDirectory(Path("run")), RunConfig().cluster, PLAN)
    text = str(caught.value)
    assert re.findall(r"n\d has 1.00 GiB of GPU \d", text) == [f"n{n} has 1.00 GiB of GPU {k}" for n, k in
                                                              ((1, 0), (1, 1), (2, 0))]  # fmt: skip
    assert ", and 1 more. Free it, choose another --strategy" in text
    assert text.endswith("with --force")
    assert "\n" not in text


def test_nothing_is_compared_where_nothing_is_predicted_or_it_is_forced(heard: Callable[[list[Room]], None]) -> None:
    heard([replace(room, host_free=0) for room in ROOMS])
    for plan in (replace(PLAN, forced=True), replace(PLAN, strategies=())):
        gate.check(RunDirectory(Path("run")), RunConfig().cluster, plan)


def test_what_a_rank_finds(disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the run's own NVMe folder is cleared by the engine; what its checkpoints hold is counted."""
    nvme = disk(8 * MIB) / "wellread-run"
    nvme.mkdir()
    (nvme / "left").write_bytes(bytes(3 * MIB))
    run = RunDirectory(tmp_path / "run")
    saved = run.checkpoints / "step-00000000" / "model"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").write_bytes(bytes(MIB))
    monkeypatch.setenv("LOCAL_RANK", "0")
    config, plan = RunConfig.of(nvme_path=str(nvme)), replace(PLAN, machine=replace(PLAN.machine, device="cpu"))
    found = gate.look(run, config.cluster, plan)
    assert (found.disk_held, found.nvme_free, found.nvme_is_disk, found.gpu_free) == (MIB, 8 * MIB, False, None)
    assert gate.look(RunDirectory(nvme.parent), config.cluster, plan).nvme_is_disk
    assert gate.look(run, config.cluster, replace(plan, strategy="zero3")).nvme_free is None
    monkeypatch.setenv("RANK", "2")
    second_node = gate.look(run, config.cluster, plan)
    assert (second_node.disk_free, second_node.nvme_free) == (None, 8 * MIB)


@pytest.mark.slow
def test_a_run_is_refused_in_a_small_control_group(
    corpora: Path, root: Path, tmp_path: Path, memory_group: Callable[[int], Path]
) -> None:
    """The launcher is told that the node has 64 GiB; the ranks see the limit that the kernel holds them to."""
    group = memory_group(1200 * MIB)
    flags = ["--corpora", corpora, "--out", tmp_path / "run", "--ranks_per_node", 2, "--steps", 2, "--host_mem", 64]
    size = ["--batch_size", 64, "--micro_batch_size", 32, "--seq_len", 512]
    command = [sys.executable, "-m", "launch", "run", "finetune", *map(str, [*flags, *size])]
    enter = f'echo 0 > {group}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", enter, "sh", *command], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    found = re.search(r"ddp: \S+ has ([\d.]+) GiB of host memory, ([\d.]+) are needed", done.stderr)
    assert found, done.stderr
    assert 0.8 < float(found[1]) < 1.17  # of 1.17; the launcher takes some
    assert 2.0 < float(found[2]) < 2.4
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
