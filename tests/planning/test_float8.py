"""`--float8` in a plan: what it is refused for, the memory that it adds, and where it is stated."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wellread.config import RunConfig, packages
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve

HOPPER = Machine(device="cuda", gpu="NVIDIA H200", gpu_mem=139, host_mem=500)
Program = Callable[..., Any]


def plan(machine: Machine = HOPPER, spec: ModelSpec | None = None, **flags: Any) -> Plan:
    spec = spec or find("pythia-1.4b")
    config = resolve(RunConfig.of(**{"model": spec.name, "data": "dolly", "steps": 1000, "float8": True} | flags), spec)
    return make_plan(config, spec, machine, Counts(samples=5000, trainable=4000, sealed=1000, exact=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"dtype": "fp32"},
            "--float8: rounds the products of bf16 training; leave out --dtype fp32, or leave it out",
        ),
        (
            {"lora": {"rank": 8}},
            "--float8: is for matrices that are trained, and LoRA freezes them; leave out one of the two",
        ),
        (
            {"lora": {"rank": 8}, "load_in_4bit": True},
            "--float8: is for matrices that are trained, and LoRA freezes them; leave out one of the two",
        ),
        (
            {"strategy": "zero3"},
            "--float8: works only with ddp; leave it out, or leave out --strategy and --ds_config",
        ),
        (
            {"ds_config": "mine.json"},
            "--float8: works only with ddp; leave it out, or leave out --strategy and --ds_config",
        ),
    ],
)
def test_settings_that_exclude_it(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        RunConfig.of(float8=True, **flags)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "gpu",
    ["NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 3090", "NVIDIA A10G"],
)
def test_gpus_without_float8(gpu: str) -> None:
    with pytest.raises(UserError) as refused:
        plan(replace(HOPPER, gpu=gpu))
    assert str(refused.value) == (
        f"--float8: {gpu} computes no float8, which begins with compute capability 8.9 (Ada, Hopper); leave it out"
    )


@pytest.mark.parametrize(
    "gpu",
    [
        *(None, "NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA L40S", "NVIDIA GeForce RTX 4090", "NVIDIA B200"),
        *("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "AMD Instinct MI300X"),
    ],
)
def test_gpus_with_float8_or_unknown(gpu: str | None) -> None:
    assert plan(replace(HOPPER, gpu=gpu)).strategy == "ddp"


def test_a_plan_that_takes_another_strategy_than_ddp_is_refused() -> None:
    small = replace(HOPPER, gpu=None, gpu_mem=12)
    with pytest.raises(UserError, match=r"--float8: works only with ddp, not zero3\S* \(.*\); leave it out"):
        plan(small, find("pythia-2.8b"))


def test_models_without_a_matrix_to_convert() -> None:
    spec = find("pythia-14m")
    with pytest.raises(UserError, match=r"multiples of 16, and pythia-14m \(width 120\) has none; leave it out$"):
        plan(spec=replace(spec, width=120, heads=4))
    with pytest.raises(UserError, match="--float8: the layers of gpt2 have no linear modules to convert; leave it out"):
        plan(spec=replace(spec, family="gpt2"))
    assert plan(spec=replace(spec, family="other")).strategies == ()  # nothing is known; a rank decides


@pytest.mark.parametrize("fast", ["on", "off"])
def test_memory_of_the_copies(fast: str) -> None:
    flags = {"strategy": "ddp", "seq_len": 2048, "micro_batch_size": 8, "batch_size": 8, "fast": fast}
    with_it, without = (plan(**flags, float8=on).needs for on in (True, False))
    assert with_it
    assert without
    parts, usual = with_it["parts"]["gpu"], without["parts"]["gpu"]
    assert parts["float8 copies"] == 12 * 8 * 2048 * 8192  # the inner layer of 8 samples
    assert {name: size for name, size in parts.items() if name not in ("float8 copies", "fragmentation")} == {
        name: size for name, size in usual.items() if name != "fragmentation"
    }
    short = plan(**flags | {"seq_len": 64, "micro_batch_size": 1}).needs
    assert short
    assert short["parts"]["gpu"]["float8 copies"] == 12 * 2048 * 8192  # a matrix


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    packages.check(RunConfig())
    with pytest.raises(UserError) as refused:
        packages.check(RunConfig.of(float8=True))
    assert str(refused.value) == (
        f"--float8: the package torchao is not installed; run: {packages.installing('torchao')}, or leave the flag out"
    )


def test_the_plan_states_it_and_a_cpu_is_refused(in_process: Program, tmp_path: Path) -> None:
    corpora = ("--corpora", tmp_path, "--out", tmp_path / "run")
    command = ("launch", "plan", "finetune", "--model", "pythia-1.4b", "--float8", *corpora)
    refused = in_process(*command)
    assert refused.returncode == 2
    assert refused.stderr == "error: --float8: needs GPUs, but the ranks would run on CPUs; leave it out\n"
    card = ("--gpu_mem", 80, "--host_mem", 200)
    assert "pythia-1.4b (bf16, float8; " in in_process(*command, *card).stdout
    assert json.loads(in_process(*command, *card, "--json").stdout)["float8"] is True
