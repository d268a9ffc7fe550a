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

GPU = Machine(device="cuda", gpu="NVIDIA A100-SXM4-80GB", gpu_mem=80, host_mem=500)
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
    assert decided.fast_reason.startswith("none; not proven for such a run on this card: ")
    assert "\n" not in decided.fast_reason
    for name in fast.PATHS:
        assert name in decided.fast_reason


def test_auto_takes_what_the_tables_of_an_h200_show() -> None:
    hopper = replace(GPU, gpu="NVIDIA H200")
    assert plan(hopper).fast == ("bf16",)
    assert plan(hopper, pack=True).fast == ("varlen", "bf16")  # without packing, varlen was slower
    assert "varlen, tokens, compile, loss, ahead (--fast on takes them)" in plan(hopper).fast_reason


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
    monkeypatch.setitem(fast.PATHS, "compile", replace(fast.PATHS["compile"], proven=("A10", "A100 SXM4")))
    assert plan().fast == ("compile",)
    assert plan(replace(GPU, gpu="NVIDIA A100-PCIE-40GB")).fast == ()
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


def needs(machine: Machine = GPU, **flags: Any) -> dict[str, dict[str, int]]:
    decided = plan(machine, "pythia-1.4b", strategy="ddp", seq_len=512, micro_batch_size=8, **flags).needs
    assert decided
    return decided["parts"]["gpu"]  # type: ignore[no-any-return]


def test_memory_of_bf16_weights() -> None:
    """No copies in bf16, but masters; the activations are those of DeepSpeed, which computes in bf16."""
    from wellread.planning.parameters import parameters

    total = parameters(find("pythia-1.4b")).total
    autocast, masters = needs(), needs(fast="on")
    assert (autocast["weights"], autocast["moments"]) == (4 * total, 8 * total)
    assert (masters["weights"], masters["masters"], masters["moments"]) == (2 * total, 4 * total, 8 * total)
    assert "bf16 copies of weights" not in masters
    assert masters["activations"] < autocast["activations"]
    assert needs(fast="on", dtype="fp32") == needs(dtype="fp32")


def test_rows_of_packed_samples_need_no_mask() -> None:
    from wellread.planning.parameters import packing_mask

    spec = find("pythia-1.4b")
    padded, packed = (needs(pack=pack)["activations"] for pack in (False, True))
    assert packed - padded == packing_mask("autocast", 8, 512)
    rows, rows_packed = (needs(pack=pack, fast="on")["activations"] for pack in (False, True))
    assert rows == rows_packed
    assert spec.kv_heads is None or spec.kv_heads == spec.heads  # else keys and values are repeated


def test_what_does_not_suit_is_named() -> None:
    reason = plan(fast="on", dtype="fp32").fast_reason
    assert "varlen: its kernel needs --dtype bf16" in reason
    assert "bf16: is not for --dtype fp32" in reason
    assert "bf16: not with --freeze" in plan(fast="on", freeze="*.embed_in.*").fast_reason
    other = plan(fast="on", model="gpt-neo-125m").fast_reason
    assert "varlen: not for gpt_neo, only for gpt_neox and llama" in other
    for name in fast.PATHS:
        assert name in plan(fast="on").fast


def test_one_path_can_be_measured() -> None:
    spec = find("pythia-410m")
    config = resolve(RunConfig.of(model=spec.name, data="dolly", steps=10, fast="on"), spec)
    counts = Counts(samples=5000, trainable=4000, sealed=1000, exact=True)
    for name in fast.PATHS:
        assert make_plan(config, spec, GPU, counts, paths=(name,)).fast == (name,)
    assert make_plan(config, spec, GPU, counts, paths=()).fast == ()
