"""Fast paths: which ones a plan takes, and what it says about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.planning import fast
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve

GPU = Machine(device="cuda", gpu="NVIDIA H100 80GB HBM3", gpu_mem=80, host_mem=500)
CPU = Machine(device="cpu", host_mem=64)


def plan(machine: Machine = GPU, model: str = "pythia-410m", steps: int = 1000, **flags: Any) -> Plan:
    spec = find(model)
    counts = Counts(samples=5000, trainable=4000, sealed=1000, exact=True)
    return make_plan(
        resolve(RunConfig.of(model=model, data="dolly", steps=steps, **flags), spec), spec, machine, counts
    )


def test_a_path_that_no_gpu_has_proven_is_off_and_the_plan_says_so() -> None:
    decided = plan()
    assert decided.fast == ()
    assert decided.fast_reason.startswith("none; not proven on this card: ")
    assert "\n" not in decided.fast_reason
    for name in fast.PATHS:
        assert name in decided.fast_reason
    assert not any(path.proven for path in fast.PATHS.values())  # docs/benchmarks.md has no table of a GPU yet


def test_on_takes_every_path_that_suits_and_names_the_others() -> None:
    decided = plan(fast="on")
    assert "compile" in decided.fast
    assert decided.fast_reason.startswith(", ".join(decided.fast) + " (--fast on)")
    short = plan(fast="on", steps=10)
    assert "compile" not in short.fast
    assert "compile: pays from 300 steps" in short.fast_reason
    divided = plan(fast="on", strategy="zero2")
    assert "compile" not in divided.fast
    assert "compile: not with the deepspeed engine" in divided.fast_reason


def test_auto_takes_a_path_where_its_cards_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fast.PATHS, "compile", replace(fast.PATHS["compile"], proven=("A100", "H100 HBM3")))
    assert plan().fast == ("compile",)
    assert plan(replace(GPU, gpu="NVIDIA H100 PCIe")).fast == ()
    assert plan(replace(GPU, gpu=None)).fast == ()
    assert plan(fast="off").fast == ()
    assert plan(compile="off").fast == ()


def test_compile_decides_about_its_own_path() -> None:
    assert plan(compile="on").fast == ("compile",)
    assert plan(compile="on", fast="off", steps=10).fast_reason == "compile (--fast off)"
    assert "compile: --compile off" in plan(compile="off", fast="on").fast_reason
    assert plan(CPU, model="tiny", compile=True).fast == ("compile",)
    with pytest.raises(UserError, match="--compile: works only with ddp, not zero3"):
        plan(Machine(device="cuda", gpu_mem=12, host_mem=500), "pythia-2.8b", compile="on")


def test_a_plan_for_cpus_has_nothing_to_say() -> None:
    decided = plan(CPU, model="tiny")
    assert (decided.fast, decided.fast_reason) == ((), "")
    assert "compile: needs a GPU" in plan(CPU, model="tiny", fast="on").fast_reason


def test_the_plan_keeps_its_paths(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import json

    decided = plan(fast="on")
    assert Plan.from_json(json.dumps(decided.as_dict())) == decided
