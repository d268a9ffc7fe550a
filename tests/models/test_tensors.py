"""Models written and read one tensor at a time have the same files and weights as with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from wellread.models.load import load_model
from wellread.models.tensors import divide, saved_sizes, write_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def model(tied: bool, family: str = "gpt_neox") -> Any:
    kind = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig}[family]
    torch.manual_seed(3)
    config = kind(vocab_size=101, max_position_embeddings=64, tie_word_embeddings=tied, **SIZES)
    return AutoModelForCausalLM.from_config(config)


def tensors_of(source: Any) -> list[tuple[str, torch.Tensor]]:
    state = source.state_dict()
    return [(name, state[name].detach()) for name in saved_sizes(source)]


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in directory.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_one_shard_equals_the_files_of_save_pretrained(tmp_path: Path, family: str, tied: bool) -> None:
    source = model(tied, family)
    write_model(source, tmp_path / "ours", tensors_of(source))
    source.save_pretrained(tmp_path / "theirs")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == sorted(
        p.name for p in (tmp_path / "theirs").iterdir()
    )
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("tied", [False, True])
def test_shards_contain_every_tensor_once_and_can_be_loaded(tmp_path: Path, tied: bool) -> None:
    source, largest = model(tied), 20_000
    write_model(source, tmp_path / "ours", tensors_of(source), shard_bytes=largest)
    source.save_pretrained(tmp_path / "theirs")
    expected, written = weights_in(tmp_path / "theirs"), weights_in(tmp_path / "ours")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert [p.name for p in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    assert len(shards) >= 5
    per_shard = [load_file(path) for path in shards]
    assert all(sum(t.nbytes for t in shard.values()) <= largest for shard in per_shard)
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    places = {name: path.name for path, shard in zip(shards, per_shard, strict=True) for name in shard}
    assert index["weight_map"] == places
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    loaded = load_model(tmp_path / "ours").state_dict()
    assert loaded.keys() == source.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in source.state_dict().items())


def test_shards_are_filled_in_order() -> None:
    assert divide({"a": 4, "b": 4, "c": 4, "d": 9, "e": 1}, 8) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert divide({"a": 4}, 8) == [["a"]]
