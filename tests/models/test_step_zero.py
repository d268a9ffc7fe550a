"""Training and evaluation read the same model: before the first step, their losses of the same samples are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import SIZES, VOCAB, tiny

from wellread.config import LoraConfig, RunConfig
from wellread.corpus.batch import Batch
from wellread.models.load import initial, load_model
from wellread.models.loss import sample_losses
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.train.engines.torch_engine import TorchEngine


def batch(vocab: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, vocab, (3, 24), generator=generator)
    targets = torch.arange(24)[None].expand(3, -1) >= torch.tensor([[4], [9], [1]])
    return Batch(torch.arange(3), torch.full((3,), 24), tokens, targets)


@pytest.fixture
def tiny_plan() -> Plan:
    machine = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu")
    counts, spec = Counts(samples=40, trainable=32, sealed=8, exact=True), find("tiny")
    return make_plan(resolve(RunConfig.of(batch_size=2, dtype="fp32"), spec), spec, machine, counts)


@pytest.fixture
def losses(tiny_plan: Plan, tmp_path: Path) -> Any:
    """Losses of a batch: by the engine, in the forward pass of training, and by the saved checkpoint."""

    def measure(model: str, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spec = find(model)
        lora = LoraConfig(rank=rank, alpha=rank, targets="all-linear") if rank else LoraConfig()
        source = initial(spec, seed=0, eos=0, lora=lora)
        engine = TorchEngine(source, RunConfig.of(dtype="fp32"), tiny_plan)
        inputs = batch(spec.vocab)
        (tmp_path / "checkpoint").mkdir()
        engine.save(tmp_path / "checkpoint")
        with torch.no_grad():
            saved = sample_losses(load_model(tmp_path / "checkpoint/model"), *inputs.inputs)
        return engine.evaluate(inputs).float(), engine.forward_backward(inputs, 1.0, last=True).float(), saved

    return measure


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "LoRA"])
@pytest.mark.parametrize("head", ["as the family has it", "separate", "separate, but tied in config.json"])
@pytest.mark.parametrize("family", SIZES)
def test_a_pretrained_model(losses: Any, tmp_path: Path, family: str, head: str, rank: int) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = tiny(family)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):  # of GPT-2; only training has dropout
        setattr(model.config, name, 0.0)
    if head != "as the family has it":
        config = model.config
        config.tie_word_embeddings = False
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    if "tied" in head:
        path = tmp_path / "model/config.json"
        path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
        assert '"tie_word_embeddings": true' in path.read_text()
    evaluated, trained, saved = losses(str(tmp_path / "model"), rank)
    library = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = sample_losses(library, *batch(VOCAB).inputs)
    for values in (evaluated, trained, saved):
        torch.testing.assert_close(values, expected, rtol=2e-6, atol=1e-5)


def test_a_fresh_model(losses: Any) -> None:
    evaluated, trained, saved = losses("tiny", 0)
    torch.testing.assert_close(evaluated, saved, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(trained, saved, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt_neo", "mpt"])
def test_memory_is_planned_for_a_separate_head(tmp_path: Path, family: str) -> None:
    """Also if config.json says that it is tied; a copy of the embedding is not a separate head."""
    model: Any = tiny(family)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    tied = path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    path.write_text(tied)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight")))
    head = "embed_out.weight" if family == "gpt_neox" else "lm_head.weight"
    save_file(weights | {head: weights[name].clone()}, file, metadata={"format": "pt"})
    assert find(str(tmp_path)).tied is not False
    weights[name][-1, -1] += 1
    save_file(weights | {head: load_file(file)[head]}, file, metadata={"format": "pt"})
    assert find(str(tmp_path)).tied is False
