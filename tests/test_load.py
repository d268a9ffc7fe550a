"""Loading for evaluation: a model larger than the memory that it may take gives the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wellread.data.corpus import Corpus
from wellread.models.load import load_model, loaded
from wellread.score import log_likelihoods


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
