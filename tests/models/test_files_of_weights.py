"""What files of weights contain is used as transformers uses it, or refused by name; pickles are only converted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.programs import Program

from pretrain.__main__ import main
from wellread.corpus.tokenizer import FILES, copy_files
from wellread.errors import UserError
from wellread.models.directories import weight_files
from wellread.models.load import Source, check_files, load_model
from wellread.models.registry import find

TOKENS = torch.arange(20)[None]
SIZES = {
    "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 101,
    "max_position_embeddings": 64, "intermediate_size": 32,
}  # fmt: skip
"""Sizes in the config.json of a Llama."""
FAMILIES = {
    "LlamaConfig": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "GPTNeoXConfig": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "GPTJConfig": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "MptConfig": {"d_model": 32, "n_layers": 2, "n_heads": 2},
}


def save(directory: Path, kind: str = "LlamaConfig", **settings: Any) -> Path:
    import transformers

    torch.manual_seed(3)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 101}
    config = getattr(transformers, kind)(**(ends | FAMILIES[kind] | settings))
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def change(directory: Path, added: dict[str, torch.Tensor], **config: Any) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | added, file, metadata={"format": "pt"})
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def by_library(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_separate_head_is_kept_as_transformers_does(tmp_path: Path, kind: str, tied: bool) -> None:
    """Training reads through `Source.reader`, evaluation through `load_model`."""
    save(tmp_path, kind, tie_word_embeddings=False)
    change(tmp_path, {}, tie_word_embeddings=tied)
    expected = logits(by_library(tmp_path))
    assert torch.equal(logits(load_model(tmp_path)), expected)
    source = Source.of(tmp_path)
    assert source.config.tie_word_embeddings is False
    model: Any = source.on_meta()
    read = source.reader(model)
    source.write(model, tmp_path / "saved", ((name, read(name)) for name in source.saved_names(model)))
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(by_library(tmp_path / "saved")), expected)


def test_a_copy_of_the_embedding_stays_tied(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    change(tmp_path, {"lm_head.weight": embedding.clone()})
    assert Source.of(tmp_path).config.tie_word_embeddings is True
    model: Any = load_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_without_a_place_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path)
    change(tmp_path, {"model.layers.2.mlp.up_proj.weight": torch.ones(2), "some.lora_A.weight": torch.ones(2)})
    reason = "contain 2 tensors that its config.json has no place for, the first model.layers.2.mlp.up_proj.weight"
    source = Source.of(tmp_path)
    model = source.on_meta()
    for load in (lambda: load_model(tmp_path), lambda: source.reader(model), source.in_memory):
        with pytest.raises(UserError, match=reason):
            load()


@pytest.mark.parametrize("kind", ["LlamaConfig", "GPT2Config"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_parameters_that_are_not_in_floating_point_are_refused_by_name(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    save(tmp_path, kind)
    name, value = next(iter(load_file(tmp_path / "model.safetensors").items()))
    change(tmp_path, {name: (10 * value).to(dtype)})
    source = Source.of(tmp_path)
    for load in (lambda: load_model(tmp_path), lambda: source.reader(source.on_meta())):
        with pytest.raises(UserError, match=rf"model\.safetensors: {name} is stored as (I8|U8|I32|F8_E4M3), which is "):
            load()
    for good in (torch.float16, torch.bfloat16, torch.float64):
        change(tmp_path, {name: value.to(good)})
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"load_in_4bit": True}, "by its quantization_config"),
    ],
)
def test_quantized_weights_are_refused_from_the_config(tmp_path: Path, config: dict[str, Any], method: str) -> None:
    save(tmp_path)
    change(tmp_path, {}, quantization_config=config)
    for load in (lambda: find(str(tmp_path)), lambda: Source.of(tmp_path)):
        with pytest.raises(UserError, match=rf"config\.json: its weights are quantized \({method}\); pass the model "):
            load()
    change(tmp_path, {}, quantization_config=None)
    find(str(tmp_path))
    load_model(tmp_path)


def test_shards_that_would_not_be_read_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    weights, index = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors.index.json"
    shard = tmp_path / "model-00002-of-00002.safetensors"
    save_file(weights, shard)
    with pytest.raises(UserError, match=rf"^{shard}: is not used, because the weights are in model\.safetensors; "):
        load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, shard.name)}))
    with pytest.raises(UserError, match=rf"^{index}: names {shard.name}, but the weights are in model\.safetensors; "):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    load_model(tmp_path)
    other = shard.with_name("model-00003-of-00003.safetensors")
    save_file(weights, other)
    with pytest.raises(UserError, match=rf"^{other}: is not used, because the weights are in the files that "):
        load_model(tmp_path)


def test_other_files_of_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path)
    check_files(find(str(tmp_path)), "pretrained")
    assert capsys.readouterr().err == ""
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    check_files(find(str(tmp_path)), "pretrained")
    expected = f"{tmp_path / 'consolidated.safetensors'}: is not used; the weights are read from other files\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GPTNeoXConfig", "gpt_neox.layers.0.attention.bias"),
        ("GPTNeoXConfig", "gpt_neox.layers.0.attention.masked_bias"),
        ("GPTNeoXConfig", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("GPT2Config", "transformer.h.0.attn.bias"),
        ("GPTJConfig", "transformer.h.0.attn.masked_bias"),
        ("LlamaConfig", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_what_old_files_contain_and_models_compute_is_accepted(tmp_path: Path, kind: str, name: str) -> None:
    save(tmp_path, kind)
    before = logits(load_model(tmp_path))
    change(tmp_path, {name: torch.ones(4)})
    assert torch.equal(logits(load_model(tmp_path)), before)


def test_a_padding_token_outside_the_vocabulary_is_refused_from_the_config(tmp_path: Path) -> None:
    save(tmp_path)
    change(tmp_path, {}, pad_token_id=101)
    for load in (lambda: find(str(tmp_path)), lambda: Source.of(tmp_path)):
        with pytest.raises(UserError, match="pad_token_id 101 is outside its vocabulary of 101; set it to null"):
            load()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["pad_token_id", "eos_token_id", "bos_token_id"])
def test_special_tokens_that_the_model_does_not_have(tmp_path: Path, file: str, key: str) -> None:
    save(tmp_path)
    path = tmp_path / file
    content = json.loads(path.read_text()) if path.exists() else {}
    outside, several = (101, 10**30), "outside its vocabulary of 101" if key == "eos_token_id" else "not the id"
    for value in (*outside, -1, 2.0, "2", True, [], [[2]], [2, 101], {"id": 2}):
        path.write_text(json.dumps(content | {key: value}))
        what = several if value == [2, 101] else "outside its vocabulary of 101" if value in outside else "not the id"
        with pytest.raises(UserError, match=f"{file}: {key} {re.escape(json.dumps(value))} is {what}.*; set it to"):
            find(str(tmp_path))
    for good in (None, 0, 100, *([[0, 100]] if key == "eos_token_id" else [])):
        path.write_text(json.dumps(content | {key: good}))
        find(str(tmp_path))


def read_files(model: Path) -> None:
    """Read all files of a model as the commands do that compile a corpus."""
    find(str(model))
    copy_files(model, model / "copy")
    weight_files(model)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "missing", "/dev/zero"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", *FILES])
def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | SIZES))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(name if kind == "loop" else kind)
    with pytest.raises(UserError) as refused:
        read_files(tmp_path)
    assert str(refused.value).startswith(f"{path}: is a ")


def test_settings_of_generation_that_cannot_be_used(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "generation_config.json"
    for text in ("", "[]", "5", "{", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"generation_config.json: (is|not) "):
            find(str(tmp_path))
    path.write_text('{"max_new_tokens": -1}')
    with pytest.raises(UserError, match=r"generation_config.json: the model cannot be loaded \(.*max_new_tokens"):
        load_model(tmp_path)


# --- other formats


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"model.safetensors: is a Git LFS pointer, .* git lfs pull"):
        load_model(tmp_path)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    directory = save(tmp_path / "whole")
    shutil.copytree(directory, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(directory / "model.safetensors")
    half = len(weights) // 2
    for number, names in enumerate((list(weights)[:half], list(weights)[half:]), 1):
        torch.save({n: weights[n] for n in names}, tmp_path / f"old/pytorch_model-{number:05d}-of-00002.bin")
    return tmp_path / "old"


def test_pickled_weights_are_refused_and_converted(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{pickled}\S+\.bin: .* wellread import {pickled} --out NEW_DIRECTORY"):
        load_model(pickled)
    assert main(["import", str(pickled), "--out", str(tmp_path / "new")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "new").glob("model*")) == [".json", *[".safetensors"] * 2]
    assert torch.equal(logits(load_model(tmp_path / "new")), logits(load_model(tmp_path / "whole")))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_malicious_pickle_is_neither_loaded_nor_converted(pickled: Path, tmp_path: Path, legacy: bool) -> None:
    marker, file = tmp_path / "marker", pickled / "pytorch_model-00002-of-00002.bin"
    torch.save({"w": Malicious(marker)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="only safetensors are read"):
        load_model(pickled)
    with pytest.raises(UserError, match=r"00002.bin: contains more than weights, so it is not loaded \(.*system"):
        main(["import", str(pickled), "--out", str(tmp_path / "new")])
    assert not marker.exists()
    assert not (tmp_path / "new").exists()


def test_files_are_checked_before_a_corpus_is_compiled(tmp_path: Path) -> None:
    save(tmp_path)
    check_files(find(str(tmp_path)), "pretrained")
    change(tmp_path, {"some.lora_A.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"a tensor that its config\.json has no place for, some\.lora_A\.weight"):
        check_files(find(str(tmp_path)), "pretrained")
    check_files(find(str(tmp_path)), "fresh")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"model\.safetensors: is a Git LFS pointer"):
        check_files(find(str(tmp_path)), "pretrained")


@pytest.mark.long
def test_files_are_checked_before_ranks_start_if_the_corpus_exists(
    program: Program, small_model: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(small_model, tmp_path / "model")
    flags = ["--model", directory, "--corpora", tmp_path / "corpora", "--data", "sample", "--seq_len", "64"]
    program("wellread", "prepare", "finetune", *flags, check=True)
    change(directory, {"some.lora_A.weight": torch.ones(2)})
    result = program("wellread", "run", "finetune", *flags, "--steps", "1", "--out", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "a tensor that its config.json has no place for, some.lora_A.weight" in result.stderr
    assert not (tmp_path / "run").exists()
