"""``wellread models``: list the known models and the memory that fine-tuning needs."""

from __future__ import annotations

import json
import sys
from typing import Any

from wellread.cli import new_parser, parse
from wellread.models.published import steps_of
from wellread.models.registry import find, registry
from wellread.models.spec import ModelSpec
from wellread.planning.estimate import Work, estimate
from wellread.planning.machine import Machine
from wellread.planning.parameters import parameters
from wellread.planning.strategies import LADDER
from wellread.units import GIB

EXAMPLES = """examples:
  wellread models
  wellread models --json
  wellread plan finetune --model pythia-2.8b --gpu_mem 80 --ranks_per_node 8      what your run would need
"""
LORA_RANK = 16
TOKENS = 512
HEADS = ("model", "parameters", "family", "batch", "peak lr", "checkpoints", "full, GiB", "LoRA, GiB")


def main(argv: list[str]) -> int:
    """Print the registry; return the exit code."""
    parser = new_parser("wellread models", "List the models known by name.", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="Print a list with one JSON object per model.")
    models = [describe(find(name)) for name in registry()]
    if parse(parser, argv).json:
        sys.stdout.write(json.dumps(models, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(models))
    return 0


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Describe a model, with the GPU memory of a full and of a LoRA fine-tuning."""
    full, lora = Work(seq_len=TOKENS), Work(seq_len=TOKENS, lora_rank=LORA_RANK)
    return {
        "name": spec.name,
        "family": spec.family,
        "hub": spec.hub,
        "parameters": parameters(spec).total,
        "layers": spec.layers,
        "width": spec.width,
        "heads": spec.heads,
        "vocab": spec.vocab,
        "positions": spec.positions,
        "published_batch_size": spec.pretraining and spec.pretraining.batch_size,
        "published_lr": spec.pretraining and spec.pretraining.lr,
        "published_steps": len(steps_of(spec.name)),
        "full": _least(spec, full),
        "lora": None if spec.fresh else _least(spec, lora),
    }


def _least(spec: ModelSpec, work: Work) -> dict[str, Any]:
    """Return the strategy that needs the least GPU memory without offloading."""
    on_the_gpu = [name for name, rung in LADDER.items() if not rung.offloads]
    estimates = (estimate(spec, work, Machine(device="cuda"), strategy) for strategy in on_the_gpu)
    least = min(estimates, key=lambda each: each.gpu_bytes)
    return {"strategy": least.strategy, "gpu_bytes": least.gpu_bytes}


def as_text(models: list[dict[str, Any]]) -> str:
    """Return the models as an aligned table."""
    rows = [list(HEADS)]
    for model in models:
        sizes = [f"{model[kind]['gpu_bytes'] / GIB:,.1f}" if model[kind] else "" for kind in ("full", "lora")]
        batch, lr = model["published_batch_size"], model["published_lr"]
        published = [f"{batch:,}" if batch else "", f"{lr:g}" if lr else "", f"{model['published_steps'] or ''}"]
        rows.append([model["name"], f"{model['parameters']:,}", model["family"], *published, *sizes])
    left_aligned = (0, 2)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{v:<{w}}" if c in left_aligned else f"{v:>{w}}" for c, (v, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    note = (
        "batch, peak lr: of the published pretraining. checkpoints: number of published ones, NAME@stepN.\n"
        f"GiB: on one GPU, nothing offloaded, 1 x {TOKENS} tokens, bf16; LoRA of rank {LORA_RANK} on all matrices.\n"
    )
    return "\n".join(line.rstrip() for line in lines) + f"\n\n{note}"
