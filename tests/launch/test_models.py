"""``wellread models``: its table and its JSON."""

from __future__ import annotations

import json
from typing import Any

from launch import models
from wellread.models.registry import find, registry
from wellread.units import GIB


def test_every_model_is_in_the_json(in_process: Any) -> None:
    listed = json.loads(in_process("launch", "models", "--json", check=True).stdout)
    assert [model["name"] for model in listed] == list(registry())
    by_name = {model["name"]: model for model in listed}
    neox = by_name["gpt-neox-20b"]
    assert (neox["parameters"], neox["published_batch_size"], neox["published_lr"]) == (20_554_567_680, 1536, 9.7e-5)
    assert by_name["pythia-410m-v0"]["published_steps"] == 143
    assert by_name["tiny"]["lora"] is None


def test_memory_of_a_full_and_a_lora_fine_tune() -> None:
    """For 6.9 billion weights in bf16 with ZeRO: at least 16 bytes per weight, with LoRA a little more than 2."""
    model = models.describe(find("pythia-6.9b"))
    total = model["parameters"]
    assert model["full"]["gpu_bytes"] > 16 * total
    assert 2 * total < model["lora"]["gpu_bytes"] < 3 * total
    assert model["lora"]["strategy"].startswith("zero")


def test_table(in_process: Any) -> None:
    lines = in_process("launch", "models", check=True).stdout.splitlines()
    assert lines[0].split() == [
        "model",
        "parameters",
        "family",
        "batch",
        "peak",
        "lr",
        "checkpoints",
        "full,",
        "GiB",
        "LoRA,",
        "GiB",
    ]
    row = next(line for line in lines if line.startswith("pythia-12b "))
    model = models.describe(find("pythia-12b"))
    sizes = [f"{model[kind]['gpu_bytes'] / GIB:,.1f}" for kind in ("full", "lora")]
    assert row.split() == ["pythia-12b", "11,846,072,320", "gpt_neox", "1,024", "0.00012", "154", *sizes]
    assert max(map(len, lines)) <= 110
