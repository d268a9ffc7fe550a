"""Products in float8: which modules are converted, and that names, checkpoints and resumed runs stay as they are.

torchao is not needed: a module in its place records what it was asked for, and rounds weights.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine_ranks import make_model, one_process, one_step, plan_of, same_weights
from support.small_models import LIKE_LLAMA, SIZES, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from wellread.config import OptimConfig, RunConfig
from wellread.errors import UserError
from wellread.models.load import Source
from wellread.models.registry import find
from wellread.planning.parameters import layout_of
from wellread.train.engines import float8
from wellread.train.engines.base import freeze
from wellread.train.engines.torch_engine import TorchEngine

TASK: dict[str, Any] = {"strategy": "ddp", "accumulation": 2, "micro": 2, "steps": 20, "seq_len": 23}


@dataclass(frozen=True)
class Recipe:
    """In the place of torchao's configuration."""

    name: str
    pad_inner_dim: bool = False

    @classmethod
    def from_recipe_name(cls, name: str) -> Recipe:
        return cls(name)


class Rounded(nn.Linear):
    """In the place of torchao's module: its factors are rounded, and it refuses torch's inference mode."""

    recipe: Recipe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_inference_mode_enabled()
        weight = self.weight + (self.weight.to(torch.float8_e4m3fn).to(self.weight.dtype) - self.weight).detach()
        return nn.functional.linear(x, weight, self.bias)


def convert_to_float8_training(model: nn.Module, *, module_filter_fn: Any, config: Recipe) -> nn.Module:
    """In the place of torchao's function: exchanges modules, which keep their parameters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module_filter_fn(module, name):
            other = Rounded(1, 1, bias=False, device="meta")
            other.weight, other.bias, other.recipe = module.weight, module.bias, config
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, other)
    return model


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.float8"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    vars(module).update(Float8LinearConfig=Recipe, convert_to_float8_training=convert_to_float8_training)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    with one_process(tmp_path_factory.mktemp("group")):
        yield


def engine_of(model: Path, *, fast: tuple[str, ...] = ("bf16",), **flags: Any) -> Any:
    config = RunConfig.of(**{"float8": True} | flags, optim=OptimConfig(lr=1e-3))
    return TorchEngine(Source.of(model), config, plan_of(TASK | {"plan": {"fast": fast}}, 1))


def train(engine: Any, first: int = 0, last: int = 4) -> list[float]:
    """Losses of some steps, which read the same four batches again and again."""
    plan = plan_of(TASK, 1)
    return [one_step(engine, plan, step % 4, 331, None)[0] for step in range(first, last)]


# --- which modules


@pytest.mark.parametrize("family", [*SIZES, *LIKE_LLAMA])
def test_all_matrices_of_the_layers_and_no_other(family: str) -> None:
    names, matrices = float8.converted(tiny(family)), layout_of(replace(find("tiny"), family=family)).linears
    converted = sorted(name.rpartition(".")[2] for name in names)
    assert converted == ([] if family == "gpt2" else sorted([*matrices] * 2))  # GPT-2 has no linear modules


def test_not_what_is_frozen_or_has_other_sizes() -> None:
    model = tiny("llama")
    freeze(model, "*.layers.0.*")
    assert {name.split(".")[2] for name in float8.converted(model)} == {"1"}
    sizes = SIZES["llama"] | {"intermediate_size": 40}
    odd = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=64, **sizes))
    projections = {name.rpartition(".")[2] for name in float8.converted(odd)}
    assert projections == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_model_without_such_modules_is_refused(stand_in: None) -> None:
    with pytest.raises(UserError, match="--float8: this gpt2 has no linear module that it can convert; leave it out"):
        float8.convert(tiny("gpt2"))


def test_a_rank_refuses_a_gpu_without_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    card = types.SimpleNamespace(name="Some Card", major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    with pytest.raises(UserError, match=r"--float8: Some Card computes no float8, .*; leave it out"):
        float8._check_gpu(torch.device("cuda"))
    card.minor = 9
    float8._check_gpu(torch.device("cuda"))


def test_torchao_is_asked_for_rows_of_any_number(stand_in: None) -> None:
    model = tiny("gpt_neox")
    names = float8.converted(model)
    float8.convert(model)
    exchanged = {name: module.recipe for name, module in model.named_modules() if isinstance(module, Rounded)}
    assert exchanged == dict.fromkeys(names, Recipe("rowwise", pad_inner_dim=True))


# --- in the engine


@pytest.mark.parametrize("fast", [("bf16",), ()])
def test_names_dtypes_and_checkpoints_stay(stand_in: None, small: Path, tmp_path: Path, fast: tuple[str, ...]) -> None:
    engine, usual = engine_of(small, fast=fast), engine_of(small, fast=fast, float8=False)
    assert any(isinstance(module, Rounded) for module in engine._module.modules())
    dtypes = [{name: p.dtype for name, p in each._module.named_parameters()} for each in (engine, usual)]
    assert dtypes[0] == dtypes[1]
    engine.save(tmp_path / "start")
    assert same_weights(tmp_path / "start" / "model", small)
    losses = train(engine, 0, 2)
    engine.save(tmp_path / "middle")
    later = train(engine, 2)
    resumed = engine_of(tmp_path / "middle" / "model", fast=fast)
    resumed.load(tmp_path / "middle" / "state", 2)
    assert train(resumed, 2) == later
    without = train(usual)
    assert losses + later != without
    assert losses + later == pytest.approx(without, rel=5e-3)
    usual.save(tmp_path / "usual")
    files = [{path.name for path in (tmp_path / name).rglob("*")} for name in ("middle", "usual")]
    assert files[0] == files[1]


def test_evaluations_do_not_use_the_inference_mode(stand_in: None, small: Path) -> None:
    from wellread.corpus.batch import Batch

    tokens = torch.arange(46).view(2, 23)
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    losses = engine_of(small).evaluate(Batch(torch.arange(2), torch.full((2,), 23), tokens, targets))
    assert losses.isfinite().all()
    assert not losses.requires_grad
