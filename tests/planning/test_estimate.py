"""Memory estimates: activations compared with what autograd saves, and computed examples.

``python -m bench.memory`` compares the estimates with measured memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.known_models import PYTHIA, SMALL, small_config

from wellread.errors import UserError
from wellread.models.families import FAMILIES, Compute
from wellread.models.registry import find
from wellread.planning.choose import choose, name_of
from wellread.planning.estimate import CUDA_CONTEXT, FRAGMENTATION, NCCL, Work, estimate
from wellread.planning.machine import Machine
from wellread.planning.parameters import layer_activations, parameters
from wellread.planning.phases import HEAP_BLOCK
from wellread.planning.strategies import LADDER
from wellread.units import GIB

# --- activations -----------------------------------------------------------------------------------------------------

SAMPLES, TOKENS = 3, 48


def saved_by_autograd(
    family: str, compute: Compute, layers: int, packed: bool = False, in_blocks: bool = False, length: int = TOKENS
) -> int:
    """Bytes of all tensors that a forward pass saves for backward, without weights and their bf16 copies."""
    import torch
    from transformers import AutoModelForCausalLM

    from wellread.models import blocked, fused
    from wellread.models.loss import sample_losses

    model = AutoModelForCausalLM.from_config(small_config(family, layers)).train()
    model = model.to(torch.bfloat16 if compute == "bf16" else torch.float32)
    if in_blocks:
        blocked.use(model)
    fused.use(model)
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        cast_weight = compute == "autocast" and tuple(tensor.shape) in shapes
        if tensor.untyped_storage().data_ptr() not in weights and not cast_weight:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, 512, (SAMPLES, length + 1), generator=torch.Generator().manual_seed(0))
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=compute == "autocast"),
    ):
        sample_losses(model, tokens, targets, torch.zeros_like(tokens) if packed else None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


OTHERS = sorted(set(FAMILIES) - {"gpt_neox", "mistral", "qwen2"})
"""All families but gpt_neox, and mistral and qwen2, which are computed like llama."""


@pytest.mark.parametrize(
    ("family", "compute"),
    [
        *(("gpt_neox", compute) for compute in ("bf16", "autocast", "fp32")),
        *((family, "bf16") for family in OTHERS),
        *(pytest.param(f, c, marks=[pytest.mark.slow, pytest.mark.long]) for f in OTHERS for c in ("autocast", "fp32")),
    ],
)
def test_activations_equal_what_autograd_saves(family: str, compute: Compute) -> None:
    layer = saved_by_autograd(family, compute, 3) - saved_by_autograd(family, compute, 2)
    predicted = layer_activations(SMALL[family], compute, SAMPLES, TOKENS, cuda=False)
    assert predicted == pytest.approx(layer, rel=0.03 if family == "gptj" else 0.01)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt_neo", "mpt"])
def test_activations_of_packed_samples(family: str) -> None:
    """Without the mask, which all layers share. When packing, a forward pass includes the last token."""
    layer = saved_by_autograd(family, "bf16", 3, packed=True) - saved_by_autograd(family, "bf16", 2, packed=True)
    predicted = layer_activations(SMALL[family], "bf16", SAMPLES, TOKENS + 1, cuda=False, repeated=True)
    assert predicted == pytest.approx(layer, rel=0.01)


@pytest.mark.parametrize("packed", [False, True], ids=["samples", "packed"])
@pytest.mark.parametrize(("family", "compute"), [("gpt_neox", "autocast"), ("llama", "autocast"), ("llama", "bf16")])
def test_activations_of_attention_in_blocks(
    family: str, compute: Compute, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks of rows: 128 x 128 and 52 x 180 probabilities per head."""
    import torch

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    length = 180 - packed  # a packed pass reads the last token too
    two, three = (saved_by_autograd(family, compute, layers, packed, True, length) for layers in (2, 3))
    predicted = layer_activations(SMALL[family], compute, SAMPLES, 180, cuda=False, blocked=True)
    assert predicted == pytest.approx(three - two, rel=0.01)


@pytest.mark.parametrize("seq_len", [256, 512, 600, 2048])
def test_probabilities_of_attention_in_blocks_are_planned_up_to_their_limit(seq_len: int) -> None:
    spec, machine = find("pythia-160m"), Machine(device="cpu")
    parts = [
        estimate(spec, Work(seq_len=seq_len, micro_batch=8, dtype=dtype), machine, "ddp").parts["host"]["activations"]
        for dtype in ("bf16", "fp32")
    ]
    plain = layer_activations(spec, "autocast", 8, seq_len, cuda=False)
    short = min(seq_len, 512)
    in_blocks = layer_activations(spec, "autocast", 8, short, cuda=False, blocked=True)
    entry = 8 * seq_len * spec.width * 4
    assert parts[0] == 12 * max(plain, in_blocks) + entry
    assert parts[1] == 12 * layer_activations(spec, "fp32", 8, seq_len, cuda=False) + entry
    assert (in_blocks > plain) == (seq_len <= 600)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_of_attention_grows_with_the_length_and_not_with_its_square(family: str) -> None:
    short, long = (layer_activations(SMALL[family], "bf16", 1, tokens, cuda=True) for tokens in (1000, 2000))
    assert long == 2 * short


@pytest.mark.parametrize(("family", "masks"), [("gptj", 1), ("gpt_neo", 2), ("mpt", 2.5)])
def test_masks_of_packed_samples(family: str, masks: float) -> None:
    """GPT-Neo derives one for its window; MPT converts the mask to bool, and that to what is added to scores."""
    spec, machine = SMALL[family], Machine(device="cuda", gpu_mem=80, host_mem=100)
    plain, packed = (
        estimate(spec, Work(seq_len=128, micro_batch=2, packed=packed), machine, "zero2").parts["gpu"]["activations"]
        for packed in (False, True)
    )
    assert packed - plain == masks * 2 * 128 * 128 * 2


# --- one strategy ----------------------------------------------------------------------------------------------------

N = PYTHIA["pythia-160m"]
ON_GPUS = Machine(ranks_per_node=8)


def of(strategy: str, work: Work | None = None, machine: Machine = ON_GPUS, **settings: Any) -> Any:
    return estimate(find("pythia-160m"), work or Work(), machine, strategy, **settings)


def test_training_state_of_each_strategy_per_gpu() -> None:
    part = {strategy: of(strategy).parts["gpu"] for strategy in LADDER}
    share = -(-N // 8)
    assert (part["ddp"]["weights"], part["ddp"]["moments"]) == (4 * N, 8 * N)
    for strategy in ("zero1", "zero2"):
        state = part[strategy]
        assert (state["weights"], state["master weights"], state["moments"]) == (2 * N, 4 * share, 8 * share)
    assert part["zero2-offload"].keys().isdisjoint({"master weights", "moments"})
    assert part["zero3"]["weights"] == 2 * share
    assert part["zero3"]["moments"] == pytest.approx(8 * share, rel=1e-3)  # rounded up tensor by tensor
    assert "weights" not in part["zero3-offload"]


def test_training_state_in_host_memory() -> None:
    one_gpu = Machine(ranks_per_node=1, nvme=100)
    host = of("zero2-offload", machine=one_gpu).parts["host"]
    assert (host["master weights"], host["gradients"], host["moments"]) == (4 * N, 4 * N, 8 * N)
    assert host["pinned buffers"] == 2 * (N + 50304 * 768)
    assert host["gathered to save"] + host["shard to save"] == 4 * (
        N + 50304 * 768
    )  # all weights, and the largest twice


def test_nvme_holds_weights_optimizer_and_gradients() -> None:
    one_gpu = Machine(ranks_per_node=1, nvme=1000)
    small = of("zero3-nvme", machine=one_gpu)
    assert small.nvme_bytes == (2 + 12 + 4) * N
    assert "moments" not in small.parts["host"]
    assert small.parts["host"]["weights"] == 2 * N  # fewer than DeepSpeed keeps in host memory
    large = estimate(find("pythia-12b"), Work(seq_len=2048), one_gpu, "zero3-nvme").parts["host"]
    embedding = 50688 * 5120  # the largest tensor, which is also the largest sub-group by itself
    assert large["weights"] == 2 * 10**9
    assert large["NVMe buffers"] == 4 * 4 * embedding + 5 * 2 * embedding + 2 * embedding


def test_rank_0_holds_all_of_a_fresh_model_but_one_tensor_of_a_pretrained_one() -> None:
    eight = Machine(ranks_per_node=8, device="cpu")
    spec = replace(find("pythia-12b"), fresh=True)
    fresh = estimate(spec, Work(), Machine(ranks_per_node=8), "zero3")
    assert fresh.parts["host"]["fresh model"] == 4 * TWELVE
    pretrained = estimate(find("pythia-12b"), Work(), Machine(ranks_per_node=8), "zero3")
    assert fresh.host_bytes - pretrained.host_bytes > 20 * GIB
    assert estimate(spec, Work(), eight, "ddp").host_bytes > 16 * 8 * TWELVE


def test_everything_is_host_memory_on_cpus() -> None:
    needs = of("zero2", machine=Machine(device="cpu", ranks_per_node=2))
    assert needs.gpu_bytes == 0
    assert needs.parts["host"]["weights"] == 2 * 2 * N
    assert needs.parts["host"]["master weights"] == 4 * N


def test_small_blocks_stay_with_the_process() -> None:
    """Freed activations stay with the process if they are below glibc's largest mmap threshold."""
    cpu = Machine(device="cpu")
    small, large = (of("zero2", Work(seq_len=s, micro_batch=4), cpu) for s in (256, 2048))
    assert small.peaks["host"] == "step"
    assert small.parts["host"]["freed but kept"] > 0
    assert HEAP_BLOCK < 4 * 2048 * 3072 * 2
    assert large.peaks["host"] != "step"


def test_context_and_fragmentation() -> None:
    parts = of("zero3").parts["gpu"]
    allocated = sum(size for part, size in parts.items() if part not in ("CUDA context", "fragmentation"))
    assert parts["fragmentation"] == int(FRAGMENTATION * allocated)
    assert parts["CUDA context"] == CUDA_CONTEXT + NCCL
    assert of("ddp", machine=Machine()).parts["gpu"]["CUDA context"] == CUDA_CONTEXT


def test_disk_holds_every_model_and_the_newest_states() -> None:
    work = Work(checkpoints=9, states=2)
    assert of("ddp", work).disk_bytes == 9 * 4 * N + 3 * 8 * N
    assert of("zero2", work).disk_bytes == 9 * 4 * N + 3 * (12 + 2) * N
    assert of("zero3", work).disk_bytes == 9 * 4 * N + 3 * 12 * N
    assert of("zero3", replace(work, checkpoints=1)).disk_bytes == 4 * N + 12 * N
    assert of("zero3-nvme", work).disk_bytes == 9 * 4 * N + 3 * 8 * N


def test_gradients_in_fp32_are_counted() -> None:
    """zero2 and zero3 keep 4 instead of 2 bytes per weight of a rank; the others stay as they are."""
    work, share = Work(accumulation=4, micro_batch=8, seq_len=2048), -(-N // 8)
    usual, exact = (
        {strategy: of(strategy, replace(work, fp32_gradients=in_fp32)) for strategy in LADDER}
        for in_fp32 in (False, True)
    )
    for strategy in ("ddp", "zero1", "zero2-offload"):
        assert exact[strategy] == usual[strategy]
    for strategy in ("zero2", "zero3"):  # the peak is at the start of backward
        assert usual[strategy].peaks["gpu"] == exact[strategy].peaks["gpu"] == "backward"
        more = exact[strategy].parts["gpu"]["gradients"] - usual[strategy].parts["gpu"]["gradients"]
        assert more == 2 * share
    assert exact["zero3-offload"].host_bytes - usual["zero3-offload"].host_bytes == 8 * 2 * share


@pytest.mark.parametrize("strategy", LADDER)
def test_less_work_never_needs_more(strategy: str) -> None:
    def gpu(work: Work, **settings: Any) -> int:
        return int(of(strategy, work, **settings).gpu_bytes)

    work = Work(micro_batch=4, seq_len=2048)
    assert gpu(work) > gpu(work, checkpointing=True)
    assert gpu(work) > gpu(replace(work, micro_batch=1)) > gpu(replace(work, micro_batch=1, seq_len=256))
    assert gpu(work) >= gpu(replace(work, lora_rank=8))  # equal when the optimizer is offloaded
    assert gpu(work) >= gpu(work, machine=replace(ON_GPUS, nodes=4))


# --- pythia-12b, as docs/memory.md computes it ------------------------------------------------------------------------

TWELVE = PYTHIA["pythia-12b"]


def twelve(gpus: int, gpu_mem: float, host_mem: float, nvme: float | None = None) -> Any:
    machine = Machine(ranks_per_node=gpus, gpu_mem=gpu_mem, host_mem=host_mem, nvme=nvme)
    return choose(find("pythia-12b"), Work(seq_len=2048), machine)


@pytest.mark.parametrize(
    ("machine", "strategy", "ratio", "gpu", "host"),
    [
        ((1, 80, 500), "zero2-offload", None, 47.6, 223.8),
        ((4, 40, 500), "zero3-partial", 0.7, 36.2, 166.0),
        ((8, 24, 256), "zero3-partial", 0.9, 21.8, 221.5),
        ((8, 80, 1000), "zero1", None, 68.2, 64.8),
        ((1, 139, 128), "zero3-partial", 0.5, 130.4, 115.0),
    ],
)
def test_twelve_billion_fits(
    machine: tuple[int, float, float], strategy: str, ratio: float | None, gpu: float, host: float
) -> None:
    best = twelve(*machine).best
    assert (best.strategy, best.checkpointing, best.ratio) == (strategy, False, ratio)
    assert (best.gpu_bytes / GIB, best.host_bytes / GIB) == pytest.approx((gpu, host), abs=0.06)


def test_only_a_partial_offload_fits_one_large_gpu_with_little_host_memory() -> None:
    choice = twelve(1, 139, 128)
    assert {e.strategy for e in choice.estimates if e.fits} == {"zero3-partial"}
    with_nvme = twelve(1, 139, 128, nvme=200)
    assert {e.strategy for e in with_nvme.estimates if e.fits} == {
        "zero3-partial"
    }  # it needs 198.6 GiB, and 5% stay free
    assert "zero3-nvme" in {e.strategy for e in twelve(1, 139, 128, nvme=210).estimates if e.fits}


# --- choosing --------------------------------------------------------------------------------------------------------


def test_strategies_are_tried_by_speed() -> None:
    choice = choose(find("pythia-160m"), Work(), ON_GPUS)
    assert choice.best is not None
    assert (choice.best.strategy, choice.best.checkpointing) == ("ddp", False)
    assert choice.reason == "the fastest that fits (no limits given)"
    assert [e.strategy for e in choice.estimates] == [s for s in LADDER for _ in range(2)]
    speeds = [rung.speed for rung in LADDER.values()]
    assert speeds == sorted(speeds, reverse=True)
    again = choose(find("pythia-160m"), Work(), ON_GPUS, strategies=["zero2", "zero3"], checkpointing=True)
    assert again.best is not None
    assert name_of(again.best) == "zero2 with activation checkpointing"


def test_a_faster_strategy_with_a_smaller_micro_batch_comes_first() -> None:
    ways = [Work(micro_batch=m, accumulation=8 // m, seq_len=2048) for m in (8, 4, 2, 1)]
    choice = choose(find("pythia-410m"), ways, Machine(gpu_mem=16, host_mem=64))
    assert choice.best is not None
    assert (choice.best.strategy, choice.best.checkpointing) == ("ddp", False)
    assert choice.work.micro_batch == 2
    assert not estimate(find("pythia-410m"), ways[1], Machine(gpu_mem=16, host_mem=64), "ddp").fits


@pytest.mark.parametrize(("seq_len", "fastest"), [(1024, "ddp"), (64, "ddp with activation checkpointing")])
def test_checkpointing_is_faster_than_forward_passes_of_few_tokens(seq_len: int, fastest: str) -> None:
    """One sample at a time fits without checkpointing; more fit only with it."""
    spec = find("pythia-1.4b")
    ways = [Work(micro_batch=m, accumulation=64 // m, seq_len=seq_len) for m in (32, 16, 8, 4, 2, 1)]
    one_sample = estimate(spec, ways[-1], Machine(), "ddp", margin=0).gpu_bytes / GIB
    choice = choose(spec, ways, Machine(gpu_mem=one_sample + 0.01), strategies=["ddp"], margin=0)
    assert choice.best is not None
    assert name_of(choice.best) == fastest
    assert (choice.work.micro_batch > 1) == choice.best.checkpointing


def test_speed_is_proportional_to_tokens_when_they_do_not_fill_a_gpu() -> None:
    speeds = [of("zero3", Work(micro_batch=m, seq_len=100)).relative_speed for m in (1, 2, 3, 8)]
    assert speeds == [0.2833, 0.5667, 0.85, 0.85]
    assert of("ddp", Work(seq_len=100), Machine(device="cpu")).relative_speed == 1.0


def test_reason_names_used_memory_and_the_next_faster_strategy() -> None:
    choice = twelve(8, 80, 1000)
    assert choice.reason.startswith("the fastest that fits (68.2 of 80 GiB per GPU, 64.8 of 1,000 GiB of host memory")
    assert choice.reason.endswith("; ddp is short of 148.5 GiB per GPU, as 5% of each limit stays free")


def test_margin_stays_free() -> None:
    needs = of("ddp", machine=Machine(gpu_mem=100))
    tight = needs.gpu_bytes / GIB
    assert not of("ddp", machine=Machine(gpu_mem=tight)).fits
    assert of("ddp", machine=Machine(gpu_mem=tight), margin=0.0).fits
    short = of("ddp", machine=Machine(gpu_mem=tight)).short
    assert short["gpu"] == pytest.approx(0.05 * needs.gpu_bytes, rel=1e-3)


def test_advice_makes_a_strategy_fit() -> None:
    spec, work, machine = find("pythia-6.9b"), Work(seq_len=2048, micro_batch=8), Machine(gpu_mem=24, host_mem=128)
    choice = choose(spec, work, machine)
    assert choice.best is None
    assert choice.reason.startswith("no strategy fits; the nearest, ")
    lines = dict(line.split(", ", 1) for line in choice.advice)
    assert choose(spec, replace(work, lora_rank=16), machine).best is not None
    assert "LoRA: --lora.rank 16 --lora.targets all-linear" in lines
    nodes = next(int(line.split()[1]) for line in lines if line.startswith("--nodes"))
    assert choose(spec, work, replace(machine, nodes=nodes)).best is not None
    assert choose(spec, work, replace(machine, nodes=nodes // 2)).best is None
    host = next(float(line.split()[1]) for line in lines if line.startswith("--host_mem"))
    assert choose(spec, work, replace(machine, host_mem=host)).best is not None
    assert choose(spec, work, replace(machine, host_mem=host - 2)).best is None


# --- an assumption of the estimates ---


def test_states_are_memory_mapped_when_loaded(tmp_path: Path) -> None:
    import torch

    from wellread.train.engines.moments import mapped_files

    torch.save({"state": torch.arange(10_000)}, tmp_path / "state.pt")

    def is_mapped() -> bool:
        return str(tmp_path / "state.pt") in Path("/proc/self/maps").read_text()

    with mapped_files():
        mapped = torch.load(tmp_path / "state.pt", weights_only=False)
    assert is_mapped()
    assert int(mapped["state"].sum()) == 49_995_000
    del mapped
    read = torch.load(tmp_path / "state.pt", weights_only=False)
    assert not is_mapped()
    assert int(read["state"].sum()) == 49_995_000


# --- invalid input, speed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "work", "message"),
    [
        ({"ranks_per_node": 0}, {}, "--ranks_per_node 0: must be at least 1"),
        ({"nodes": -1}, {}, "--nodes -1: must be at least 1"),
        ({"gpu_mem": -40.0}, {}, "--gpu_mem -40: must be above 0 GiB; leave it out if there is no such limit"),
        ({"host_mem": 0.0}, {}, "--host_mem 0: must be above 0 GiB"),
        ({"nvme": float("nan")}, {}, "--nvme nan: must be above 0 GiB"),
        ({"gpu_mem": 0.5}, {}, "--gpu_mem 0.5: CUDA itself needs 0.75 GiB; give the full size of a GPU"),
        ({}, {"micro_batch": 0}, "--micro_batch_size 0: must be at least 1"),
        ({}, {"seq_len": -5}, "--seq_len -5: must be at least 1"),
        ({}, {"lora_rank": -1}, "LoRA rank -1: must be at least 1, or 0 to train all weights"),
        ({}, {"lora_rank": 4, "lora_modules": ("q_proj",)}, "LoRA on q_proj: pythia-160m has no such matrix; choose"),
    ],
)
def test_invalid_input_is_refused_in_one_line(machine: dict[str, Any], work: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}[^\n]*$"):
        of("zero3", Work(**work), Machine(**machine))


def test_unknown_strategy_and_family() -> None:
    with pytest.raises(UserError, match=r"--strategy zero4: unknown; choose ddp, zero1"):
        of("zero4")
    strange = replace(find("pythia-160m"), family="mamba")
    with pytest.raises(UserError, match=r"--model pythia-160m: no memory estimate for family mamba; known: gpt_"):
        parameters(strange)


def test_choosing_imports_no_heavy_package(root: Path) -> None:
    code = """
import sys
from wellread.planning.choose import choose
from wellread.planning.estimate import Work
from wellread.planning.machine import Machine
from wellread.models.registry import find
choose(find("pythia-12b"), Work(seq_len=2048), Machine(gpu_mem=24, host_mem=64))
assert not {"torch", "transformers", "deepspeed", "numpy"} & set(sys.modules), sys.modules
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.long
@pytest.mark.slow
def test_measured_memory_is_near_the_estimate(program: Any, tmp_path: Path) -> None:
    import json

    program("bench.memory", "--cases", 1, "--json", tmp_path / "found.json", check=True)
    (case,) = json.loads((tmp_path / "found.json").read_text())
    assert -0.10 < case["predicted"] / case["measured"] - 1 < 0.20


# --- kernels that a CPU keeps ----------------------------------------------------------------------------------------


def test_kernels_of_samples_of_different_lengths() -> None:
    """256 x 1.1 MiB; none if all samples have one length, in fp32 (MKL keeps none) or on GPUs."""
    cpu = Machine(device="cpu", ranks_per_node=2)
    kernels = [
        of("ddp", work, machine).parts["host"].get("compiled kernels", 0)
        for work, machine in (
            (Work(), cpu), (Work(even=True), cpu), (Work(dtype="fp32"), cpu), (Work(), ON_GPUS),
        )
    ]  # fmt: skip
    assert kernels == [2 * int(256 * 1.1 * 2**20), 0, 0, 0]
