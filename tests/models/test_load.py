"""Loading for evaluation: an offloaded model gives the same scores; weights that do not match are errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.models.load import Source, load_model, loaded
from wellread.models.score import log_likelihoods


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.2 MB of weights in shards of 0.2 MB, with the vocabulary of the sample corpus."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 192}
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=2048, max_position_embeddings=512, **sizes))
    directory = tmp_path_factory.mktemp("wide")
    model.save_pretrained(directory, max_shard_size="200KB")
    return directory


def test_scores_with_weights_on_disk_are_the_same(wide: Path, corpus: Corpus) -> None:
    ids = np.arange(24)
    expected, n_targets = log_likelihoods(load_model(wide), corpus, ids)
    with loaded(wide, "cpu", {"cpu": 1_000_000}) as (model, where):
        places = set(model.hf_device_map.values())  # type: ignore[union-attr, operator]
        assert places == {"cpu", "disk"}
        scores, counted = log_likelihoods(model, corpus, ids, device=where)
    assert (counted == n_targets).all()
    assert np.abs(scores - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_model_that_fits_is_not_offloaded(wide: Path) -> None:
    with loaded(wide, "cpu") as (model, where):
        assert where == "cpu"
        assert not hasattr(model, "hf_device_map")
        assert next(model.parameters()).device.type == "cpu"


def test_weights_that_do_not_match_the_config_are_errors(small_model: Path, tmp_path: Path) -> None:
    """transformers initializes missing weights randomly, and only logs a warning."""
    from safetensors.torch import load_file, save_file

    def broken(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        shutil.copytree(small_model, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return tmp_path / name

    lost = "gpt_neox.final_layer_norm.weight"
    without = broken("without", lambda weights: {name: value for name, value in weights.items() if name != lost})
    renamed = broken("renamed", lambda weights: {f"foo.{name}": value for name, value in weights.items()})
    smaller = broken("smaller", lambda weights: weights | {lost: weights[lost][:16].clone()})
    for directory, reason in {
        without: f"its files do not contain {lost}; use the config.json of these weights",
        renamed: r"its files do not contain \S+ and \d+ more \(they contain foo\.\S+\); use the",
        smaller: f"{lost} is 16 in its files but 32 in its config.json; use the config.json of these weights",
    }.items():
        with pytest.raises(UserError, match=reason):
            load_model(directory)
        source = Source.of(directory)
        model = source.on_meta()
        with pytest.raises(UserError, match=reason):
            source.reader(model)
