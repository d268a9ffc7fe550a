"""The environment variables of ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launch.backends.base import of
from launch.cluster import ClusterFile
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan

PLAN = Plan(
    model="tiny", machine=Machine(cluster="local", device="cpu", ranks_per_node=2),
    counts=Counts(samples=4, trainable=4, sealed=0, exact=True), batch_size=4, micro_batch_size=2, accumulation=1,
    dtype="bf16", engine="torch", strategy="ddp", strategy_reason="", seq_len=8,
    steps=1, epochs=1.0, warmup_steps=0, save_steps=(0, 1),
)  # fmt: skip
LOCAL = ClusterFile(kind="local")


def environment(plan: Plan, file: ClusterFile) -> dict[str, str]:
    return of(file).environment(plan)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables that affect those of the ranks, and eight cores, of which one is busy."""
    for name in (
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "TORCH_EXTENSIONS_DIR",
        "WELLREAD_MODELS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 9.0, 9.0))
    return monkeypatch


def test_the_ranks_get_exactly_these_variables(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("HF_TOKEN", "not for the ranks' list")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "nor this")
    variables = environment(PLAN, replace(LOCAL, python="/opt/venv/bin/python"))
    assert variables == {
        "OMP_NUM_THREADS": "4",
        "TORCH_EXTENSIONS_DIR": "/opt/venv/torch_extensions",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUTF8": "1",
        "DS_ACCELERATOR": "cpu",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_the_accelerator_is_set_only_on_cpus(bare: pytest.MonkeyPatch) -> None:
    assert environment(PLAN, LOCAL)["DS_ACCELERATOR"] == "cpu"
    bare.setenv("OMP_WAIT_POLICY", "active")
    assert environment(PLAN, LOCAL)["OMP_WAIT_POLICY"] == "active"
    bare.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    assert environment(PLAN, LOCAL)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    on_gpus = environment(replace(PLAN, machine=replace(PLAN.machine, device="cuda")), LOCAL)
    assert not on_gpus.keys() & {"DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY"}


def test_threads_spin_only_where_each_has_an_idle_core(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def waiting(ranks: int, file: ClusterFile = LOCAL) -> str | None:
        plan = replace(PLAN, machine=Machine(device="cpu", ranks_per_node=ranks))
        return environment(plan, file).get("OMP_WAIT_POLICY")

    assert [waiting(ranks) for ranks in (1, 2, 3, 8)] == [None] * 4
    assert waiting(9) == "passive"  # nine ranks of one thread on eight cores
    assert waiting(2, ClusterFile(kind="slurm")) == "passive"  # the number of cores is unknown
    assert waiting(2, ClusterFile(kind="slurm", cpus_per_rank=12)) is None
    bare.setattr(os, "getloadavg", lambda: (8.5, 1.0, 1.0))  # other programs use the cores
    bare.setattr("launch.environment.LOAD", tmp_path / "loadavg")
    assert [waiting(1), waiting(2, ClusterFile(kind="slurm", cpus_per_rank=12))] == ["passive", None]
    for running, expected in {9: "passive", 8: None}.items():  # this thread is one of them
        (tmp_path / "loadavg").write_text(f"8.50 1.00 1.00 {running}/300 4000\n")
        assert waiting(1) == expected
    bare.setattr(os, "getloadavg", lambda: (8.0, 9.0, 9.0))
    bare.setenv("OMP_NUM_THREADS", "5")
    assert [waiting(1), waiting(2)] == [None, "passive"]
    for threads, expected in {"2,4": None, " 2 ": None, "5,1": "passive", "all": "passive"}.items():
        bare.setenv("OMP_NUM_THREADS", threads)
        assert waiting(2) == expected


def test_threads_share_the_cores(bare: pytest.MonkeyPatch) -> None:
    def threads(ranks: int, file: ClusterFile) -> str:
        return environment(replace(PLAN, machine=Machine(device="cpu", ranks_per_node=ranks)), file)["OMP_NUM_THREADS"]

    assert [threads(n, LOCAL) for n in (1, 3, 8, 9)] == ["8", "2", "1", "1"]
    assert threads(2, ClusterFile(kind="slurm")) == "1"  # nodes may have more or fewer cores than this machine
    assert threads(2, ClusterFile(kind="slurm", cpus_per_rank=12)) == "12"
    bare.setenv("OMP_NUM_THREADS", "5")
    assert threads(1, LOCAL) == threads(1, ClusterFile(kind="slurm", cpus_per_rank=12)) == "5"


def test_folders_of_models_are_made_absolute(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    bare.chdir(tmp_path)
    bare.setenv("HOME", str(tmp_path / "home"))
    bare.setenv("WELLREAD_MODELS", os.pathsep.join(["models", "", "/srv/models", "~/mine"]))
    assert environment(PLAN, LOCAL)["WELLREAD_MODELS"].split(os.pathsep) == [
        f"{tmp_path}/models", "/srv/models", f"{tmp_path}/home/mine",
    ]  # fmt: skip


def test_the_cluster_file_overrides_variables(bare: pytest.MonkeyPatch) -> None:
    file = replace(LOCAL, interface="eth1", environment={"OMP_NUM_THREADS": "2", "NCCL_SOCKET_IFNAME": "ib0"})
    variables = environment(PLAN, file)
    assert (variables["OMP_NUM_THREADS"], variables["GLOO_SOCKET_IFNAME"], variables["NCCL_SOCKET_IFNAME"]) == (
        "2",
        "eth1",
        "ib0",
    )
