"""Engines on two ranks: memory while loading and saving, offload, activation checkpointing, NVMe; figures, not runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 30_000
Results = list[dict[str, Any]]
Start = Callable[..., Results]


def make_model(directory: Path, **sizes: int) -> Path:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    usual = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    config = GPTNeoXConfig(**({"vocab_size": 331, "max_position_embeddings": 128} | usual | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sizes no two ranks divide evenly: 331 tokens, and a width of 33 for one head."""
    return make_model(tmp_path_factory.mktemp("small"), hidden_size=34, num_attention_heads=1, intermediate_size=63)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 million parameters in 12 shards or so."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    return make_model(tmp_path_factory.mktemp("large"), vocab_size=VOCAB, **sizes)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run `engine_worker.py` on some ranks with a task; what each of them measured."""

    def run(task: dict[str, Any], ranks: int = 2) -> Results:
        folder = tmp_path / f"task-{len(list(tmp_path.glob('task-*')))}"
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps({"vocab": 331} | task, default=str))
        variables = {
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(ROOT),
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")),
        }
        elastic = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [sys.executable, *elastic, str(ROOT / "tests/engine_worker.py"), str(folder)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]

    return run


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def per_parameter(result: dict[str, Any], phase: str, key: str = "peak") -> float:
    """Bytes per parameter above what the process had before the phase."""
    found: float = (result[phase][key] - result[phase]["before"]) / result["parameters"]
    return found


# --- loading


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "zero3-offload"])
def test_weights_are_those_of_the_files_to_the_bit(
    start: Start, small: Path, tmp_path: Path, strategy: str, dtype: str
) -> None:
    start({"model": small, "strategy": strategy, "dtype": dtype, "save": tmp_path / "saved"})
    assert same_weights(tmp_path / "saved/model", small)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_fresh_model_starts_the_same_whatever_the_strategy(start: Start, tmp_path: Path, strategy: str) -> None:
    from wellread.models.load import initial
    from wellread.models.registry import find

    start({"model": "tiny", "strategy": strategy, "save": tmp_path / "saved"})
    initial(find("tiny"), 0, 0).whole().save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    assert same_weights(tmp_path / "saved/model", tmp_path / "whole")


def test_files_that_are_no_safetensors_load_from_rank_0(start: Start, small: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(small, old, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(weights_in(small), old / "pytorch_model.bin")
    start({"model": old, "strategy": "zero3", "save": tmp_path / "saved"}, ranks=3)  # 3 ranks: partitions are padded
    assert same_weights(tmp_path / "saved/model", small)


@pytest.mark.parametrize(("strategy", "before"), [("zero1", 11.4), ("zero3", 11.7)])
def test_load_holds_no_whole_copy_beside_the_engines_state(
    start: Start, large: Path, strategy: str, before: float
) -> None:
    """Bytes per parameter. `before` is what this model took when every rank built it in fp32 and kept a copy.

    What is left beside the state is one tensor (the embedding: 1.1 in fp32, and as much while it is converted), and
    in stages 1 and 2 the flat buffer that DeepSpeed makes of the bf16 weights.
    """
    for result in start({"model": large, "strategy": strategy, "vocab": VOCAB}):
        assert result["parameters"] == 55_940_096
        peak, settled = per_parameter(result, "load"), per_parameter(result, "load", "after")
        assert peak < 0.93 * before
        assert peak - settled < 2.5 if strategy == "zero3" else 3


# --- saving


def test_save_holds_one_shard(start: Start, large: Path, tmp_path: Path) -> None:
    task = {"model": large, "strategy": "zero3", "vocab": VOCAB, "save": tmp_path / "saved", "shard_bytes": 16 << 20}
    first, second = start(task)
    assert same_weights(tmp_path / "saved/model", large)
    shards = list((tmp_path / "saved/model").glob("model-*-of-*.safetensors"))
    assert len(shards) >= 8
    # The state of zero3 is written from where it is; the whole model would take 4 bytes per parameter beyond.
    assert per_parameter(first, "save") < 3.4
    assert per_parameter(second, "save") < 3.4
