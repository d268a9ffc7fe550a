"""The memory check: numbers computed by hand, and a real run in a control group that is too small.

For a disk that is too small see test_full_disk.py.
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
from wellread.train.gate import FreeSpace, shortages
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
ENOUGH = [
    FreeSpace(node="n1", host_free=38 * GIB, host_held=GIB, gpu_free=18 * GIB, disk_free=90 * GIB,
              disk_held=10 * GIB, nvme_free=60 * GIB),
    FreeSpace(node="n1", host_free=39 * GIB, host_held=GIB, gpu_free=18 * GIB),
    FreeSpace(node="n2", host_free=38 * GIB, host_held=GIB, gpu_free=18 * GIB, nvme_free=60 * GIB),
    FreeSpace(node="n2", host_free=39 * GIB, host_held=GIB, gpu_free=18 * GIB),
]  # fmt: skip
"""Exactly enough of everything: GPU memory without the CUDA context, host memory with what two ranks already use, and
disk with what is saved."""


def with_rank(rank: int, **changed: Any) -> list[FreeSpace]:
    return [replace(free, **changed) if number == rank else free for number, free in enumerate(ENOUGH)]


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
def test_shortages_of_each_kind(rank: int, changed: dict[str, Any], expected: list[str]) -> None:
    assert shortages(PLAN, with_rank(rank, **changed)) == expected


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[FreeSpace]], None]:
    """Set what the ranks measure; the runs below test the exchange between them."""

    def patch(measured: list[FreeSpace]) -> None:
        monkeypatch.setattr(gate, "look", lambda *_: None)
        monkeypatch.setattr("wellread.train.ranks.gather_objects", lambda _: measured)

    return patch


def test_the_error_is_one_line_with_the_first_shortages(measure: Callable[[list[FreeSpace]], None]) -> None:
    measure([replace(free, gpu_free=GIB) for free in ENOUGH])
    with pytest.raises(UserError, match="not enough free memory or disk for zero3-nvme") as caught:
        gate.check(RunDirectory(Path("run")), RunConfig().cluster, PLAN)
    text = str(caught.value)
    assert re.findall(r"n\d has 1.00 GiB of GPU \d", text) == [f"n{n} has 1.00 GiB of GPU {k}" for n, k in
                                                              ((1, 0), (1, 1), (2, 0))]  # fmt: skip
    assert ", and 1 more. Free some, choose another --strategy" in text
    assert text.endswith("with --force")
    assert "\n" not in text


def test_a_forced_plan_or_one_without_estimate_is_not_checked(measure: Callable[[list[FreeSpace]], None]) -> None:
    measure([replace(free, host_free=0) for free in ENOUGH])
    for plan in (replace(PLAN, forced=True), replace(PLAN, strategies=())):
        gate.check(RunDirectory(Path("run")), RunConfig().cluster, plan)


def test_what_a_rank_measures(disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the run's NVMe folder count as free, because the engine clears it; checkpoints are counted."""
    nvme = disk(8 * MIB) / "wellread-run"
    nvme.mkdir()
    (nvme / "left").write_bytes(bytes(3 * MIB))
    run = RunDirectory(tmp_path / "run")
    saved = run.checkpoints / "step-00000000" / "model"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").write_bytes(bytes(MIB))
    monkeypatch.setenv("LOCAL_RANK", "0")
    config, plan = RunConfig.of(nvme_path=str(nvme)), replace(PLAN, machine=replace(PLAN.machine, device="cpu"))
    free = gate.look(run, config.cluster, plan)
    assert (free.disk_held, free.nvme_free, free.nvme_is_disk, free.gpu_free) == (MIB, 8 * MIB, False, None)
    assert gate.look(RunDirectory(nvme.parent), config.cluster, plan).nvme_is_disk
    assert gate.look(run, config.cluster, replace(plan, strategy="zero3")).nvme_free is None
    monkeypatch.setenv("RANK", "2")
    second_node = gate.look(run, config.cluster, plan)
    assert (second_node.disk_free, second_node.nvme_free) == (None, 8 * MIB)


@pytest.mark.slow
def test_a_run_is_rejected_in_a_small_control_group(
    corpora: Path, root: Path, tmp_path: Path, memory_group: Callable[[int], Path]
) -> None:
    """The launcher assumes 64 GiB because of --host_mem; the ranks see the limit that the kernel enforces."""
    group = memory_group(1200 * MIB)
    flags = ["--corpora", corpora, "--out", tmp_path / "run", "--ranks_per_node", 2, "--steps", 2, "--host_mem", 64]
    size = ["--batch_size", 64, "--micro_batch_size", 32, "--seq_len", 512]
    command = [sys.executable, "-m", "launch", "run", "finetune", *map(str, [*flags, *size])]
    enter = f'echo 0 > {group}/cgroup.procs && exec "$@"'
    process = subprocess.run(["sh", "-c", enter, "sh", *command], cwd=root, capture_output=True, text=True, check=False)
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1
    match = re.search(r"ddp: \S+ has ([\d.]+) GiB of host memory, ([\d.]+) are needed", process.stderr)
    assert match, process.stderr
    assert 0.8 < float(match[1]) < 1.17  # of 1.17; the launcher uses some
    assert 2.0 < float(match[2]) < 3.4
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
