"""Engines on two ranks, without runs: memory while loading and saving, offload, activation checkpointing, NVMe."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_ranks import Results, make_model, run_ranks, same_weights

pytestmark = pytest.mark.slow

VOCAB = 30_000
OFFLOAD_TOLERANCE = 2e-3
"""Maximum difference of losses between DeepSpeed's AdamW on the host and torch's, nats per token."""
Start = Callable[..., Results]


# --- fixtures


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with sizes that two ranks cannot divide evenly: 331 tokens, and a width of 33 for one head."""
    return make_model(tmp_path_factory.mktemp("small"), hidden_size=34, num_attention_heads=1, intermediate_size=63)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 million parameters in about 12 shards."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    return make_model(tmp_path_factory.mktemp("large"), vocab_size=VOCAB, **sizes)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 256, "max_position_embeddings": 512}
    return make_model(tmp_path_factory.mktemp("deep"), **sizes)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run a task on some ranks (`engine_ranks.one_rank`); returns what each rank measured."""
    return partial(run_task, tmp_path)


def run_task(place: Path, task: dict[str, Any], ranks: int = 2) -> Results:
    return run_ranks(place / f"task-{len(list(place.glob('task-*')))}", [task], ranks)[0]


def per_parameter(result: dict[str, Any], phase: str, key: str = "peak") -> float:
    """Memory per parameter, bytes, in addition to what the process used before the phase."""
    size: float = (result[phase][key] - result[phase]["before"]) / result["parameters"]
    return size


# --- loading


@pytest.fixture(scope="module")
def unchanged(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models that were loaded or initialized, then saved: STRATEGY-DTYPE or STRATEGY-fresh. Read only."""
    place = tmp_path_factory.mktemp("unchanged")
    tasks = [
        {"model": small, "strategy": strategy, "dtype": dtype, "save": place / f"{strategy}-{dtype}"}
        for strategy, dtype in LOADED
    ] + [{"model": "tiny", "strategy": strategy, "save": place / f"{strategy}-fresh"} for strategy in ("ddp", "zero3")]
    run_ranks(place / "tasks", tasks)
    return place


LOADED = [(s, dtype) for s in ("zero1", "zero2", "zero3", "zero3-offload") for dtype in ("bf16", "fp32")]


@pytest.mark.parametrize(("strategy", "dtype"), LOADED)
def test_loaded_weights_are_bit_exact(unchanged: Path, small: Path, strategy: str, dtype: str) -> None:
    assert same_weights(unchanged / f"{strategy}-{dtype}" / "model", small)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_fresh_model_starts_the_same_whatever_the_strategy(unchanged: Path, tmp_path: Path, strategy: str) -> None:
    from wellread.models.load import initial
    from wellread.models.registry import find

    initial(find("tiny"), 0, 0).in_memory().save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    assert same_weights(unchanged / f"{strategy}-fresh" / "model", tmp_path / "whole")


@pytest.fixture(scope="module")
def loaded(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Results, Path]]]:
    """Load and save the large model once per strategy; returns what the ranks measured, and the saved folder."""
    place = tmp_path_factory.mktemp("loaded")

    @cache
    def load(strategy: str) -> tuple[Results, Path]:
        task = {"model": large, "strategy": strategy, "vocab": VOCAB, "shard_bytes": 16 << 20}
        return run_task(place, task | {"save": place / strategy} if strategy == "zero3" else task), place / strategy

    yield load
    shutil.rmtree(place)  # it is large


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "before"), [("zero1", 11.4), ("zero3", 11.7)])
def test_load_allocates_no_second_copy_of_the_model(
    loaded: Callable[[str], tuple[Results, Path]], strategy: str, before: float
) -> None:
    """Bytes per parameter. `before` is the peak when every rank built the model in fp32 and kept a copy.

    In addition to the state, the peak contains one tensor (the embedding: 1.1 in fp32, twice during conversion) and,
    in stages 1 and 2, the flat buffer that DeepSpeed makes of the bf16 weights.
    """
    for result in loaded(strategy)[0]:
        assert result["parameters"] == 55_940_096
        peak, settled = per_parameter(result, "load"), per_parameter(result, "load", "after")
        assert peak < 0.93 * before
        assert peak - settled < 2.5 if strategy == "zero3" else 3


# --- saving


@pytest.mark.long
def test_save_needs_memory_for_one_shard(loaded: Callable[[str], tuple[Results, Path]], large: Path) -> None:
    (first, second), saved = loaded("zero3")
    assert same_weights(saved / "model", large)
    shards = list((saved / "model").glob("model-*-of-*.safetensors"))
    assert len(shards) >= 8
    # zero3 writes its state without a copy; a copy of the complete model would take 4 more bytes per parameter.
    assert per_parameter(first, "save") < 3.4
    assert per_parameter(second, "save") < 3.4


# --- offload


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_offload_learns_the_same_as_its_stage(small: Path, tmp_path: Path, stage: int) -> None:
    """100 steps of accumulation 4 with many clipped gradients, and bf16 weights, which the two kernels round
    differently.

    Three steps are dropped, and one has an infinite gradient: these change no weights, and the next step contains
    nothing of their gradients.
    """
    task = {"model": small, "steps": 100, "accumulation": 4, "micro": 2, "optim": {"clip": 0.3}, "drop": [0, 40, 41]}
    task |= {"infinite": [60]}
    tasks = [task | {"strategy": f"zero{stage}{kind}"} for kind in ("", "-offload")]
    (plain, _), (offloaded, _) = run_ranks(tmp_path / "tasks", tasks)
    assert np.mean(np.array(plain["norms"]) > 0.3) > 0.5  # clipped
    assert plain["losses"][:2] == offloaded["losses"][:2]  # the first step changed nothing
    assert max(plain["moved"] + offloaded["moved"]) < 1e-5
    assert [len(result["moved"]) for result in (plain, offloaded)] == [4, 4]
    assert [int(np.sum(~np.isfinite(result["norms"]))) for result in (plain, offloaded)] == [1, 1]
    assert np.abs(np.subtract(plain["losses"], offloaded["losses"])).max() < OFFLOAD_TOLERANCE
    assert np.allclose(plain["norms"], offloaded["norms"], rtol=0.02)


@pytest.mark.long
def test_gradients_that_are_accumulated_in_fp32_are_nearer(small: Path, tmp_path: Path) -> None:
    """The norm of a sum over 16 micro-batches, against the torch engine with bf16 weights, which adds up in fp32.

    It is not equal, because ranks exchange each micro-batch in bf16.
    """
    task = {"model": small, "steps": 4, "accumulation": 16, "micro": 1, "drop": [1], "infinite": [2]}
    tasks = [task | {"strategy": "ddp", "plan": {"fast": ["bf16"]}}]
    for strategy in ("zero2", "zero3"):
        for dtype in ("bf16", "fp32"):
            tasks.append(task | {"strategy": strategy, "plan": {"grad_accum_dtype": dtype}})
    exact, *results = (of_ranks[0] for of_ranks in run_ranks(tmp_path / "tasks", tasks))
    for usual, in_fp32 in (results[:2], results[2:]):
        errors = [abs(each["norms"][0] - exact["norms"][0]) for each in (usual, in_fp32)]
        assert errors[1] < errors[0] / 2
        assert in_fp32["losses"] == pytest.approx(exact["losses"], rel=1e-3)
        assert max(in_fp32["moved"]) < 1e-5  # a dropped step and an infinite gradient change nothing


@pytest.fixture(scope="module")
def four_steps(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """zero3 without offload."""
    task = {"model": small, "strategy": "zero3", "accumulation": 2, "steps": 4, "drop": [1]}
    return run_task(tmp_path_factory.mktemp("zero3"), task)[0]


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero3-partial", "zero3-nvme"])
def test_partial_and_nvme_offload_train_and_resume_bit_exactly(
    start: Start,
    small: Path,
    four_steps: dict[str, Any],
    tmp_path: Path,
    strategy: str,
) -> None:
    disk = tmp_path / "nvme"
    disk.mkdir()
    task = {"model": small, "strategy": strategy, "config": {"nvme_path": disk / "run"}, "accumulation": 2}
    task |= {"drop": [1]}
    tasks = [task | {"steps": steps, "save": tmp_path / name} for name, steps in (("full", 4), ("half", 2))]
    (full, _), (half, _) = run_ranks(tmp_path / "tasks", tasks)
    assert np.abs(np.subtract(full["losses"], four_steps["losses"])).max() < OFFLOAD_TOLERANCE
    assert len(full["norms"]) == 3
    assert max(full["moved"] + four_steps["moved"]) < 1e-5
    assert half["losses"] == full["losses"][:2]
    later = {"first": 2, "updates": 1, "steps": 4, "model": tmp_path / "half/model", "resume": tmp_path / "half/state"}
    resumed = start(task | later | {"save": tmp_path / "resumed"})[0]
    assert resumed["losses"] == full["losses"][2:]
    assert same_weights(tmp_path / "resumed/model", tmp_path / "full/model")
    assert list(disk.iterdir()) == []


# --- activation checkpointing


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "dtype"), [("zero2", "bf16"), ("ddp", "bf16"), ("zero3", "fp32")])
def test_activation_checkpointing_only_changes_memory(start: Start, deep: Path, strategy: str, dtype: str) -> None:
    """12 layers of width 64, 9,216 tokens: activations need most memory. Recomputing gives equal results."""
    task = {"model": deep, "strategy": strategy, "dtype": dtype, "steps": 2, "micro": 18, "seq_len": 512}
    without, with_it = (start(task | {"plan": {"activation_checkpointing": on}})[0] for on in (False, True))
    assert without["losses"] == pytest.approx(with_it["losses"], rel=1e-6)
    assert without["norms"] == pytest.approx(with_it["norms"], rel=1e-3)
    peaks = [result["train"]["peak"] - result["train"]["before"] for result in (without, with_it)]
    activations = 12 * 9216 * 16 * 64 * 2  # bytes: a layer keeps about 16 values of its width per token, bf16 or fp32
    assert peaks[0] - peaks[1] > 0.5 * activations
