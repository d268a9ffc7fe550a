"""Loading for evaluation: a model larger than the memory that it may take gives the same scores."""

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
    """1.2 MB of weights in shards of 0.2 MB; the tokens are those of the sample corpus."""
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
        found, counted = log_likelihoods(model, corpus, ids, device=where)
    assert (counted == n_targets).all()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_fits_is_loaded_plainly(wide: Path) -> None:
    with loaded(wide, "cpu") as (model, where):
        assert where == "cpu"
        assert not hasattr(model, "hf_device_map")
        assert next(model.parameters()).device.type == "cpu"


def test_weights_that_are_not_those_of_the_config_are_refused(small_model: Path, tmp_path: Path) -> None:
    """transformers draws at random what files lack, and says so in a log that nobody reads."""
    from safetensors.torch import load_file, save_file

    def broken(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        shutil.copytree(small_model, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return tmp_path / name

    lost = "gpt_neox.final_layer_norm.weight"
    without = broken("without", lambda found: {name: value for name, value in found.items() if name != lost})
    renamed = broken("renamed", lambda found: {f"foo.{name}": value for name, value in found.items()})
    smaller = broken("smaller", lambda found: found | {lost: found[lost][:16].clone()})
    for directory, reason in {
        without: f"its files lack {lost}; they are not the weights of its config.json",
        renamed: r"its files lack \S+ and \d+ more \(they hold foo\.\S+\); they are not",
        smaller: f"{lost} is 16 in its files and 32 by its config.json; they do not belong together",
    }.items():
        with pytest.raises(UserError, match=reason):
            load_model(directory)
        source = Source.of(directory)
        model = source.on_meta()
        with pytest.raises(UserError, match=reason):
            source.reader(model)
