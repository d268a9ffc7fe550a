"""Generating text: sampling of tokens, the end of a text, and names of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.sample import sample
from wellread.checkpoint import commit, staging
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.models.sampling import Settings, choose
from wellread.named import model_directory


def sampled(settings: Settings, times: int) -> list[int]:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    generator = torch.Generator().manual_seed(settings.seed)
    return [choose(logits, settings, generator) for _ in range(times)]


def test_sampling_follows_temperature_and_top_p() -> None:
    assert set(sampled(Settings(temperature=0), 20)) == {1}
    assert set(sampled(Settings(top_p=0.5), 200)) == {1}
    assert set(sampled(Settings(top_p=0.51), 200)) == {1, 3}
    everything = sampled(Settings(top_p=1), 4000)
    assert [everything.count(i) / 4000 for i in range(4)] == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    hot = sampled(Settings(temperature=100, top_p=1), 4000)
    assert hot.count(0) / 4000 == pytest.approx(0.25, abs=0.03)
    assert set(sampled(Settings(temperature=1e-40, top_p=1), 50)) == {1}
    assert sampled(Settings(seed=4), 50) == sampled(Settings(seed=4), 50) != sampled(Settings(seed=5), 50)


@pytest.mark.slow
def test_a_model_of_any_family_is_sampled(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MPT's configuration has another name for the number of positions."""
    from transformers import MptConfig, MptForCausalLM

    tokenizer = Tokenizer.load(corpus.tokenizer)
    config = MptConfig(d_model=32, n_heads=2, n_layers=1, expansion_ratio=2, max_seq_len=16, vocab_size=tokenizer.size)
    MptForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.backend.save_pretrained(tmp_path)
    capsys.readouterr()
    sample(tmp_path, "One", Settings(tokens=4))
    assert capsys.readouterr().out.startswith("One")
    with pytest.raises(UserError, match="and the model only 16 positions"):
        sample(tmp_path, "One", Settings(tokens=17))


@pytest.mark.shared
def test_samples_of_stories260k(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain.import_llama2c import import_llama2c

    real = shared / "stories260K"
    import_llama2c(real / "stories260K.bin", real / "tok512.model", tmp_path / "model")
    capsys.readouterr()
    outputs = []
    for text, tokens in (("", 400), ("Once upon a time", 20)):
        sample(tmp_path / "model", text, Settings(temperature=0, tokens=tokens))
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith(outputs[1].rstrip("\n"))  # without a prompt, it generates the same text
    assert outputs[0].startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park"
    )
    assert outputs[0].endswith('"Thank you, Lily! You are a good friend."\n')  # the story ends before 400 tokens
    with pytest.raises(UserError, match="--tokens 511: the text has 3 tokens and the model only 512 positions"):
        sample(tmp_path / "model", "hi", Settings(tokens=511))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "--temperature -1"),
        ({"top_p": 0.0}, "--top_p 0"),
        ({"tokens": 0}, "--tokens 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_names_of_models(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("model: tiny\n")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        model_directory(str(run))
    for step in (0, 20):
        model = staging(run / "checkpoints", step) / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_text("")
        commit(run / "checkpoints", step, {"step": step})
    assert model_directory(str(run)) == run / "checkpoints" / "step-00000020" / "model"
    assert model_directory(f"{run}@step-0") == run / "checkpoints" / "step-00000000" / "model"
    (run / "checkpoints" / "step-00000020" / "more").write_text("")
    with pytest.raises(UserError, match=r"more: not listed in checkpoint.json; remove it; choose another checkpoint"):
        model_directory(str(run))
    with pytest.raises(UserError, match=r"no checkpoint step-7; it has step-0, step-20"):
        model_directory(f"{run}@step-7")
    with pytest.raises(UserError, match="neither a run nor a model directory"):
        model_directory(str(tmp_path / "lost"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_directory(str(tmp_path / "model")) == tmp_path / "model"
