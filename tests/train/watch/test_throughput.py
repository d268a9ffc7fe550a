"""Arithmetic and memory of a batch, computed by hand; peak arithmetic of devices, by their real names."""

import numpy as np
import pytest
import torch

from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning import host_memory
from wellread.planning.parameters import parameters
from wellread.planning.plan import Plan
from wellread.train.evidence import RANK, SAMPLE, Evidence
from wellread.train.watch.throughput import Cost, peak_flops, training_flops


def cost(**values: int) -> Cost:
    return Cost(**(dict.fromkeys(("tokens", "targets", "squares", "padded", "host_bytes", "gpu_bytes"), 0) | values))


def test_arithmetic_of_a_batch_equals_what_torch_counts() -> None:
    """One sample, all tokens are targets; torch's counter counts the matrix products of forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        attn_implementation="eager",
    )  # fmt: skip
    model, length = AutoModelForCausalLM.from_config(config), 32
    spec = ModelSpec(
        name="x", family="gpt_neox", layers=3, width=64, heads=4, intermediate=256, vocab=512, positions=64
    )
    with FlopCounterMode(display=False) as counted:
        model(torch.arange(length)[None]).logits.sum().backward()
    flops = training_flops(spec, 0, cost(tokens=length, targets=length, squares=length**2))
    assert flops == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_frozen_weights_have_no_gradient() -> None:
    """1% of the weights is trained: two of three products are needed, and 1% of the third."""
    spec, batch = find("pythia-70m"), cost(tokens=100, targets=10)
    assert training_flops(spec, 0, batch, 0.01) == pytest.approx(training_flops(spec, 0, batch) * 4.02 / 6)


def test_output_embedding_counts_only_for_targets() -> None:
    spec = find("pythia-70m")
    body = parameters(spec).products - spec.vocab * spec.width
    flops = training_flops(spec, 0, cost(tokens=100, targets=10, squares=1000))
    assert flops == 6 * body * 100 + 6 * spec.vocab * spec.width * 10 + 12 * 6 * 512 * 1000


def test_unknown_family_counts_all_parameters() -> None:
    spec = ModelSpec(name="x", family="bloom", layers=2, width=8, heads=2, intermediate=32, vocab=100, positions=64)
    assert training_flops(spec, 1000, cost(tokens=10, squares=100)) == 6 * 1000 * 10 + 12 * 2 * 8 * 100


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA H200", 989.4, 67),
        ("NVIDIA H100 80GB HBM3", 989.4, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A10G", 70, 31.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA B300 SXM6 AC", 2250, 75),
        ("NVIDIA GB200", 2500, 80),
        ("NVIDIA H20", 148, 44),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 91.1),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8),
        ("Tesla V100-SXM2-32GB", 125, 15.7),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
    ],
)
def test_peaks_of_known_devices(name: str, bf16: float | None, fp32: float | None) -> None:
    assert peak_flops(name, "bf16") == (bf16 and bf16 * 1e12)
    assert peak_flops(name, "fp32") == (fp32 and fp32 * 1e12)
    assert peak_flops(name, "tf32") == (fp32 and fp32 * 1e12 if "V100" in name else bf16 and bf16 / 2 * 1e12)


def test_cost_of_a_batch_on_two_nodes(tiny_plan: Plan) -> None:
    """Host memory is the sum over a node's ranks, GPU memory that of one rank."""
    ranks = np.array([(0, 10, 1), (0, 20, 4), (0, 25, 2), (0, 1, 3)], RANK)
    samples = np.zeros(4, SAMPLE)
    samples["n_tokens"] = [3, 5, 2, 7]
    samples["n_targets"], samples["width"] = samples["n_tokens"] - 1, 8
    assert Cost.of(Evidence(samples, ranks), tiny_plan) == Cost(
        tokens=17, targets=13, squares=87, padded=32, host_bytes=30, gpu_bytes=4
    )


@pytest.fixture
def tiny_plan() -> Plan:
    from wellread.config import RunConfig
    from wellread.planning.machine import Machine
    from wellread.planning.plan import Counts
    from wellread.planning.planner import make_plan
    from wellread.recipes.registry import resolve

    cluster = Machine(cluster="slurm", nodes=2, ranks_per_node=2, device="cpu")
    counts = Counts(samples=40, trainable=32, sealed=8, exact=True)
    spec = find("tiny")
    return make_plan(resolve(RunConfig.of(batch_size=4), spec), spec, cluster, counts)


def test_peak_of_host_memory_is_at_least_what_is_allocated() -> None:
    before = host_memory.peak()
    allocated = np.ones(8 << 20)
    assert host_memory.peak() >= before
    assert host_memory.peak() >= allocated.nbytes
