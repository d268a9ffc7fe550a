"""LoRA: all strategies train the same adapter, save it in peft's layout and resume from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.engine_ranks import make_model, run_ranks, same_weights, weights_in

from wellread.config import LoraConfig, RunConfig
from wellread.errors import UserError
from wellread.models.adapter import Adapter, targets
from wellread.models.families import FAMILIES
from wellread.models.load import Source, export, initial, load_model, loaded
from wellread.models.registry import find
from wellread.recipes.registry import resolve

LORA = {"rank": 4, "alpha": 16.0, "targets": "query_key_value,dense_4h_to_h"}
PER_LAYER = 4 * (34 + 3 * 34) + 4 * (63 + 34)
STRATEGIES = ["ddp", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-nvme"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with sizes that two ranks cannot divide evenly: 331 tokens, and an inner width of 63."""
    return make_model(tmp_path_factory.mktemp("small"), hidden_size=34, num_attention_heads=1, intermediate_size=63)


def adapted(model: Path, seed: int = 0, **lora: Any) -> Source:
    return initial(find(str(model)), seed, 0, LoraConfig(**(LORA | lora)))


def saved(source: Source, directory: Path, *, trained: bool = True) -> Path:
    """Save an adapter as a run does; if `trained`, with random weights instead of B = 0."""
    model = source.on_meta()
    read = source.reader(model)
    generator = torch.Generator().manual_seed(7)

    def value(name: str) -> torch.Tensor:
        initial_value = read(name)
        return torch.randn(initial_value.shape, generator=generator) / 10 if trained else initial_value

    source.write(model, directory, ((name, value(name)) for name in source.saved_names(model)))
    return directory


# --- the adapter


def test_default_targets_are_those_of_peft() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

    assert {name: tuple(TARGETS[name]) for name in FAMILIES} == {name: each.lora for name, each in FAMILIES.items()}


def test_initial_adapter_has_the_distribution_of_peft_and_changes_nothing(small: Path, tmp_path: Path) -> None:
    directory = saved(adapted(small), tmp_path / "adapter", trained=False)
    weights = weights_in(directory)
    assert {p.name for p in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum(tensor.numel() for tensor in weights.values()) == 2 * PER_LAYER
    for name, tensor in weights.items():
        bound = 1 / np.sqrt(
            tensor.shape[1]
        )  # U(-1/sqrt(inputs), 1/sqrt(inputs)): its standard deviation is bound / sqrt(3)
        if "lora_A" in name:
            assert tensor.abs().max() <= bound
            assert 0.8 < float(tensor.std()) * np.sqrt(3) / bound < 1.2
        else:
            assert not tensor.any()
    assert not same_weights(directory, saved(adapted(small, seed=1), tmp_path / "other", trained=False))
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(load_model(directory)(tokens).logits, load_model(small)(tokens).logits)


@pytest.mark.parametrize("kind", [{}, {"targets": "all-linear"}])
def test_merging_gives_the_weights_of_peft(kind: dict[str, Any], small: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    directory = saved(adapted(small, **kind), tmp_path / "adapter")
    of_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small), directory).merge_and_unload()
    merged, expected = load_model(directory).state_dict(), of_peft.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert not torch.equal(*(m["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"] for m in (merged, weights_in(small))))
    export(Source.of(directory), tmp_path / "whole")
    assert json.loads((tmp_path / "whole/config.json").read_text())["model_type"] == "gpt_neox"
    exported = load_model(tmp_path / "whole").state_dict()
    assert all(torch.equal(exported[name], merged[name]) for name in merged)
    tokens = torch.arange(40).view(2, 20)
    with loaded(directory, "cpu", {"cpu": 60_000}) as (model, _), torch.no_grad():  # most of it on disk
        assert torch.allclose(model(tokens).logits, load_model(directory)(tokens).logits, atol=1e-5)


def test_gpt2_keeps_its_matrices_transposed(tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM, GPT2Config

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    directory = saved(adapted(tmp_path / "base", targets="c_attn,attn.c_proj"), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    expected = peft.PeftModel.from_pretrained(base, directory).merge_and_unload().state_dict()
    merged = load_model(directory).state_dict()
    assert all(torch.allclose(merged[name], expected[name], rtol=0, atol=1e-6) for name in expected)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
@pytest.mark.parametrize("setting", [True, False])
@pytest.mark.parametrize(("kind", "target"), [("GPT2Config", "c_proj"), ("LlamaConfig", "o_proj")])
def test_the_module_decides_whether_a_matrix_is_transposed(
    kind: str, target: str, setting: bool, tmp_path: Path
) -> None:
    """Square matrices: a transposed change has their shape, too."""
    import peft
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 101}
    config = getattr(transformers, kind)(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    directory = saved(adapted(tmp_path / "base", targets=target), tmp_path / "adapter")
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": setting}))
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        before = base(tokens).logits
        expected = peft.PeftModel.from_pretrained(base, directory).eval()(tokens).logits
        merged = load_model(directory)(tokens).logits
    assert not torch.allclose(before, expected, atol=1e-2)
    assert torch.allclose(merged, expected, rtol=0, atol=1e-5)


def test_adapter_of_another_base_model(small: Path, tmp_path: Path) -> None:
    directory = saved(adapted(small), tmp_path / "adapter")
    base = tmp_path / "base"
    config = directory / "adapter_config.json"
    config.write_text(config.read_text().replace(str(small), str(base)))
    with pytest.raises(UserError, match=r"base: base model of the adapter does not exist; restore it"):
        load_model(directory)
    make_model(base, hidden_size=34, num_attention_heads=1, intermediate_size=62)
    with pytest.raises(UserError, match=r"was trained with another base model than .*base: the weights differ"):
        load_model(directory)
    shutil.rmtree(base)
    shutil.copytree(small, base)
    load_model(directory)
    unmarked = weights_in(directory)

    save_file(
        unmarked | {"base_model.model.gpt_neox.more.weight": torch.ones(1)}, directory / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"another base model than .*base: the matrices differ"):
        load_model(directory)


def test_targets_that_match_nothing(small: Path) -> None:
    with pytest.raises(UserError, match=r"targets q_proj: matches no matrix .* choose query_key_value, dense, "):
        adapted(small, targets="q_proj").on_meta()
    with pytest.raises(UserError, match=r"no default for opt; name matrices, or all-linear"):
        targets(LoraConfig(rank=1), replace(find("pythia-70m"), family="opt"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Models of a family whose targets the plan does not know, with a tied or a separate head."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    def make(tied: bool) -> Path:
        config = Qwen3Config(
            vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied,
        )  # fmt: skip
        directory = tmp_path_factory.mktemp("qwen3")
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        return directory

    return make


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("lm_head", "lm_head"),
        ("embed_tokens", "model.embed_tokens"),
        ("mlp", "model.layers.0.mlp"),
        ("q_norm", "model.layers.0.self_attn.q_norm"),
    ],
)
def test_targets_that_are_not_matrices_of_their_own(target: str, module: str, qwen3: Any, tmp_path: Path) -> None:
    base = qwen3(True)
    choices = "choose q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    expected = f"{target}: {module} is not a matrix with weights of its own; {choices}"
    with pytest.raises(UserError) as error:
        adapted(base, targets=f"q_proj,{target}").on_meta()
    assert str(error.value) == f"--lora.targets {expected}"
    directory = saved(adapted(base, targets="q_proj"), tmp_path / "adapter")
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": [target]}))
    with pytest.raises(UserError) as error:
        load_model(directory)
    assert str(error.value) == f"{config}: target {expected}"


def test_a_separate_head_is_merged_as_by_peft(qwen3: Any, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = qwen3(False)
    directory = saved(adapted(base, targets="q_proj,lm_head"), tmp_path / "adapter")
    of_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory).merge_and_unload()
    merged, expected = load_model(directory).state_dict(), of_peft.state_dict()
    assert all(torch.allclose(merged[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert not torch.equal(merged["lm_head.weight"], weights_in(base)["lm_head.weight"])


def test_all_linear_excludes_the_head_even_if_a_layer_has_a_matrix_of_its_name() -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3Config(vocab_size=101, hidden_size=32, intermediate_size=48, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.model.layers[0].mlp.lm_head = torch.nn.Linear(32, 32)
    adapter = Adapter.fresh(LoraConfig(rank=2, alpha=4.0, targets="all-linear"), find("pythia-70m"), 0)
    adapter.inject(model)
    adapted_modules = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert "model.layers.0.mlp.lm_head" in adapted_modules
    assert len(adapted_modules) == 8


def test_other_kinds_of_adapters_are_errors(small: Path, tmp_path: Path) -> None:
    directory = saved(adapted(small), tmp_path / "adapter")
    values = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(values | {"use_rslora": True}))
    with pytest.raises(UserError, match=r"only plain LoRA is supported; merge it"):
        Adapter.of(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "--lora.rank -1: must be at least 1, or 0 to train all weights"),
        ({"alpha": 8.0}, "--lora.rank: is missing, but other settings of LoRA are set"),
        ({"rank": 2, "alpha": 0.0}, "--lora.alpha 0.0: must be above 0"),
        ({"rank": 2, "dropout": 1.0}, "--lora.dropout 1.0: must be at least 0 and below 1"),
        ({"rank": 2, "targets": "a,,b"}, "--lora.targets 'a,,b': contains an empty name"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        RunConfig.of(lora=LoraConfig(**settings))


def test_defaults() -> None:
    spec = find("pythia-70m")
    resolved = resolve(RunConfig.of(model="pythia-70m", lora=LoraConfig(rank=8)), spec)
    assert (resolved.lora.alpha, resolved.optim.lr) == (16, 10 * spec.lr)
    assert resolve(RunConfig.of(model="pythia-70m"), spec).optim.lr == spec.lr
    with pytest.raises(UserError, match="tiny starts from random weights, so all of them have to be trained"):
        resolve(RunConfig.of(lora=LoraConfig(rank=8)), find("tiny"))


# --- the engines


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Adapters of `small` trained with all strategies on two ranks: folder of the checkpoints, results of rank 0.

    For each strategy: four steps with a checkpoint after the second; then the last two steps, resumed from this
    checkpoint and from the checkpoint of ZeRO-2 (for ZeRO-2: of ZeRO-3).
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "disk").mkdir()
    settings = {"model": small, "lora": LORA | {"dropout": 0.1}, "accumulation": 2, "dtype": "fp32", "steps": 4}
    settings |= {"config": {"nvme_path": folder / "disk/run"}, "plan": {"activation_checkpointing": True}}
    tasks: dict[str, dict[str, Any]] = {}
    for strategy in STRATEGIES:
        task = settings | {"strategy": strategy}
        tasks[f"{strategy}-whole"] = task | {"save": folder / strategy, "save_at": [0, 2]}
        tasks[f"{strategy}-rest"] = (
            task | resumed_from(folder / f"{strategy}-2") | {"save": folder / f"{strategy}-rest"}
        )
    for strategy in STRATEGIES:
        other = folder / ("zero3-2" if strategy == "zero2" else "zero2-2")
        tasks[f"{strategy}-adopted"] = settings | {"strategy": strategy, "converted": True} | resumed_from(other)
    measured = run_ranks(folder / "tasks", list(tasks.values()))
    return folder, {name: of_task[0] for name, of_task in zip(tasks, measured, strict=True)}


def resumed_from(checkpoint: Path) -> dict[str, Any]:
    return {"model": checkpoint / "model", "resume": checkpoint / "state", "first": 2}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_the_same_adapter(trained: Any, small: Path, tmp_path: Path, strategy: str) -> None:
    folder, measured = trained
    result, plain = measured[f"{strategy}-whole"], measured["ddp-whole"]
    assert same_weights(folder / f"{strategy}-0/model", saved(adapted(small), tmp_path / "initial", trained=False))
    assert result["parameters"] == weights_of(small) + 2 * PER_LAYER
    assert result["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert result["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    size = sum(p.stat().st_size for p in (folder / f"{strategy}/state").rglob("*") if p.is_file())
    assert size < 4 * weights_of(small)  # it does not contain frozen weights


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_resumes_bit_for_bit(trained: Any, strategy: str) -> None:
    folder, measured = trained
    assert measured[f"{strategy}-rest"]["losses"] == measured[f"{strategy}-whole"]["losses"][2:]
    assert same_weights(folder / f"{strategy}-rest/model", folder / f"{strategy}/model")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_resumes_from_checkpoints_of_another(trained: Any, strategy: str) -> None:
    _, measured = trained
    assert measured[f"{strategy}-adopted"]["losses"] == pytest.approx(measured["ddp-whole"]["losses"][2:], abs=1e-5)


def weights_of(model: Path) -> int:
    return sum(tensor.numel() for tensor in weights_in(model).values())


# --- a run


@pytest.mark.slow
def test_a_run_from_start_to_export(
    program: Any, in_process: Any, small_model: Path, corpora: Path, tmp_path: Path
) -> None:
    run, flags = tmp_path / "run", ["--seq_len", 64, "--batch_size", 8, "--steps", 4, "--save_every", 2]
    command = ["launch", "run", "finetune", "--model", small_model, "--data", "sample", "--corpora", corpora, *flags]
    program(*command, "--out", run, "--lora.rank", 4, check=True)
    conflicts = {
        (): "lora.alpha is 8",
        ("--lora.rank", 2): "lora.rank is 4, requested 2",
        ("--lora.rank", 4, "--lora.targets", "q_proj"): "small has no such matrix; choose query_key_value, dense",
    }
    for different, message in conflicts.items():
        refused = in_process(*command, "--out", run, *different)
        assert refused.returncode == 2
        assert message in refused.stderr
    in_process("eval", "verify", run, check=True)
    in_process("eval", "membership", run, "--steps", 4, "--bootstrap", 100, "--max_samples", 32, check=True)
    in_process("finetune", "export", f"{run}@step-2", "--out", tmp_path / "adapter", check=True)
    assert Adapter.of(tmp_path / "adapter").settings.base_model_name_or_path == str(small_model)
    in_process("finetune", "export", run, "--merged", "--out", tmp_path / "whole", check=True)
    checkpoint = run / "checkpoints/step-00000004/model"
    exported, expected = load_model(tmp_path / "whole").state_dict(), load_model(checkpoint).state_dict()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    assert (tmp_path / "whole/tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    again = in_process("finetune", "export", run, "--merged", "--out", tmp_path / "whole")
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
    missing = in_process("finetune", "export", f"{run}@step-3", "--out", tmp_path / "other")
    assert (missing.returncode, "no checkpoint step-3; it has step-0, step-2, step-4" in missing.stderr) == (
        2,
        True,
    )
