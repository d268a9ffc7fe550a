"""All families: training, saving, reloading and generating, with and without LoRA; fresh and frozen weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine_ranks import generated, make_model, run_ranks, same_weights, weights_in

from wellread.config import LoraConfig, RunConfig
from wellread.errors import UserError
from wellread.models import families as known
from wellread.models.directories import fingerprint
from wellread.models.load import check_4bit, initial, load_model
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.parameters import parameters
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan

VOCAB = 101
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": VOCAB}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", LLAMA),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    "gptj": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}),
    "llama": ("LlamaConfig", LLAMA),
    "llama, grouped queries, tied": ("LlamaConfig", LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mpt": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 2}),
}
KINDS = {"all": {}, "lora": {"rank": 4, "alpha": 64.0}}
FROZEN = "*.embed_in.*,gpt_neox.layers.0.*"


def small(family: str, directory: Path) -> Path:
    import transformers
    from transformers import AutoModelForCausalLM

    kind, sizes = FAMILIES[family]
    torch.manual_seed(5)
    config = getattr(transformers, kind)(**ENDS, **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str, str], dict[str, Any]]]:
    """A folder with a model of each family after three steps: all weights, LoRA, and LoRA with ZeRO-3."""
    folder = tmp_path_factory.mktemp("families")
    tasks = {}
    for family in FAMILIES:
        settings = {"model": small(family, folder / family), "vocab": VOCAB, "dtype": "fp32", "steps": 3, "micro": 2}
        for kind, lora in KINDS.items():
            for strategy in ("ddp", "zero3") if lora else ("ddp",):
                task = settings | {"strategy": strategy, "lora": lora, "save": folder / f"{family}-{kind}-{strategy}"}
                tasks[family, kind, strategy] = task | {"generate": strategy == "ddp"}
    measured = run_ranks(folder / "tasks", list(tasks.values()), ranks=1)
    return folder, {key: of_task[0] for key, of_task in zip(tasks, measured, strict=True)}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_generates_the_same_when_reloaded(trained: Any, family: str, kind: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, measured = trained
    result = measured[family, kind, "ddp"]
    saved = folder / f"{family}-{kind}-ddp/model"
    if kind == "lora":
        by_library: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / family), saved)
    else:
        by_library = AutoModelForCausalLM.from_pretrained(saved)
    before = generated(load_model(folder / family), VOCAB)
    assert (
        max(abs(a - b) for a, b in zip(result["logits"], before["logits"], strict=True)) > 1e-3
    )  # training has changed it
    for again in (generated(load_model(saved), VOCAB), generated(by_library, VOCAB)):
        assert again["generated"] == result["generated"]
        assert again["logits"] == pytest.approx(result["logits"], abs=1e-5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_an_adapter_under_zero3(trained: Any, family: str) -> None:
    folder, measured = trained
    plain, divided = measured[family, "lora", "ddp"], measured[family, "lora", "zero3"]
    assert divided["losses"] == pytest.approx(plain["losses"], abs=2e-5)
    first, second = (weights_in(folder / f"{family}-lora-{strategy}/model") for strategy in ("ddp", "zero3"))
    assert first.keys() == second.keys()


# --- fresh weights


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_weights_need_only_the_config(family: str, tmp_path: Path) -> None:
    directory = small(family, tmp_path / "whole")
    for file in directory.glob("*.safetensors"):
        file.unlink()
    spec = find(str(directory))
    first, again, other = (initial(spec, seed, 0, init="fresh").in_memory().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert fingerprint(spec, "fresh").startswith("fresh:")


# --- frozen parts


@pytest.mark.long
@pytest.mark.slow
def test_frozen_weights_stay_bit_for_bit(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", hidden_size=34, num_attention_heads=1, intermediate_size=63)
    settings = {"model": model, "steps": 2, "config": {"freeze": FROZEN}, "accumulation": 2}
    tasks = []
    for strategy in ("ddp", "zero2", "zero3"):
        task = settings | {"strategy": strategy, "save": tmp_path / strategy}
        checkpoint = tmp_path / f"{strategy}-1"
        later = {"model": checkpoint / "model", "resume": checkpoint / "state", "first": 1}
        tasks += [task | {"save_at": [1]}, task | later | {"save": tmp_path / f"{strategy}-rest"}]
    run_ranks(tmp_path / "tasks", tasks)
    before = weights_in(model)
    for strategy in ("ddp", "zero2", "zero3"):
        after = weights_in(tmp_path / strategy / "model")
        same = {name for name in before if torch.equal(before[name], after[name])}
        frozen = {name for name in before if "embed_in" in name or "layers.0." in name}
        assert len(frozen) == 13
        assert same == frozen, strategy
        assert same_weights(tmp_path / strategy / "model", tmp_path / f"{strategy}-rest/model"), strategy


def test_patterns_that_freeze_no_or_all_parameters(tmp_path: Path) -> None:
    from wellread.train.engines.base import count_trained, freeze

    model = load_model(make_model(tmp_path / "model"))
    with pytest.raises(UserError, match=r"--freeze \*.embd.\*: matches no parameter; the parameters are gpt_neox"):
        freeze(model, "gpt_neox.embed_in.*, *.embd.*")
    freeze(model, "gpt_neox.layers.*")
    assert count_trained(model) == 2 * 331 * 32 + 2 * 32  # the embeddings and the last norm
    with pytest.raises(UserError, match=r"--freeze \*: freezes all parameters, so nothing can be trained"):
        freeze(model, "*")


# --- 4-bit weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "a,,b"}, "--freeze 'a,,b': contains an empty pattern"),
        ({"freeze": "*.bias", "lora": LoraConfig(rank=2)}, "--freeze: LoRA already freezes all weights of the model"),
        ({"load_in_4bit": True}, "--load_in_4bit: 4-bit weights cannot be trained; add adapters with --lora.rank"),
        (
            {"load_in_4bit": True, "lora": LoraConfig(rank=2), "strategy": "zero3"},
            "--load_in_4bit: ZeRO cannot partition",
        ),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        RunConfig.of(**settings)
    assert str(refused.value).startswith(message)


def test_4_bits_need_a_gpu(program: Any, small_model: Path) -> None:
    flags = ["--model", small_model, "--data", "sample", "--seq_len", 64, "--lora.rank", 2, "--load_in_4bit", "true"]
    process = program("launch", "run", "finetune", *flags)
    assert process.returncode == 2
    assert "--load_in_4bit: needs GPUs, but the ranks would run on CPUs; leave it out" in process.stderr
    with pytest.raises(UserError, match="--load_in_4bit: needs a GPU, but this rank has none; remove the flag"):
        check_4bit()


def test_4_bits_are_planned_for_gpus() -> None:
    config = RunConfig.of(model="llama-65b", lora=LoraConfig(rank=8, alpha=16.0), load_in_4bit=True)
    cluster = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cuda", gpu_mem=80, host_mem=256)
    counts = Counts(samples=64, trainable=64, sealed=0, exact=True)
    plan = make_plan(config, find("llama-65b"), cluster, counts)
    assert (plan.strategy, plan.engine, plan.needs) == ("ddp", "torch", None)
    assert plan.strategy_reason == "memory is not predicted for 4-bit weights"


@pytest.mark.parametrize("family", known.FAMILIES)
def test_which_families_support_random_weights(family: str) -> None:
    spec = replace(find("tiny"), family=family)
    if family in known.FRESH_FAMILIES:
        model = initial(spec, seed=0, eos=0).on_meta()
        assert sum(p.numel() for p in model.parameters()) == parameters(spec).total
    else:
        with pytest.raises(UserError, match=f"no random weights for family {family}; choose gpt_neox or llama"):
            initial(spec, seed=0, eos=0)
