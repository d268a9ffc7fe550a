"""`--tf32` and `--deterministic`: what they set in a rank, and where they are stated."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from wellread.config import ModelConfig, RunConfig
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.train import arithmetic

SPEC = find("tiny")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of torch as they were before the test."""
    monkeypatch.setenv(arithmetic.WORKSPACE, "")
    monkeypatch.delenv(arithmetic.WORKSPACE)
    before = torch.get_float32_matmul_precision()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_float32_matmul_precision(before)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def state() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()


def test_what_is_set_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")  # as in containers that turn TF32 on
    arithmetic.settle(ModelConfig(), "cuda")
    assert state() == ("highest", False)
    arithmetic.settle(ModelConfig(dtype="fp32", tf32=True, deterministic=True), "cuda")
    assert state() == ("high", True)
    assert arithmetic.os.environ[arithmetic.WORKSPACE] == ":4096:8"
    monkeypatch.setenv(arithmetic.WORKSPACE, ":16:8")  # the user's own
    arithmetic.settle(ModelConfig(deterministic=True), "cuda")
    assert arithmetic.os.environ[arithmetic.WORKSPACE] == ":16:8"


def test_nothing_is_set_on_a_cpu() -> None:
    before = state()
    arithmetic.settle(ModelConfig(deterministic=True), "cpu")
    assert state() == before


def planned(device: str, **flags: Any) -> None:
    config = resolve(RunConfig.of(model="tiny", data="sample", **flags), SPEC)
    make_plan(config, SPEC, Machine(device=device), Counts(samples=99, trainable=90, sealed=9, exact=True))


def test_tf32_is_for_fp32_on_gpus() -> None:
    with pytest.raises(UserError, match="--tf32: rounds the products of fp32 training; add --dtype fp32"):
        RunConfig.of(tf32=True)
    planned("cuda", dtype="fp32", tf32=True)
    with pytest.raises(UserError, match="--tf32: needs GPUs, but the ranks would run on CPUs; leave it out"):
        planned("cpu", dtype="fp32", tf32=True)
