"""bf16 weights with fp32 masters in the torch engine: what they learn, save and resume; on one rank and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine_ranks import make_model, one_process, one_step, plan_of, run_ranks, same_weights

from wellread.config import OptimConfig, RunConfig
from wellread.models.load import Source
from wellread.train.engines.torch_engine import TorchEngine

TASK: dict[str, Any] = {"strategy": "ddp", "accumulation": 2, "micro": 2, "steps": 6, "plan": {"fast": ["bf16"]}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("small"))


def engine_of(model: Path, **task: Any) -> Any:
    plan = plan_of(TASK | task, 1)
    config = RunConfig.of(dtype=plan.dtype, optim=OptimConfig(lr=1e-3), **task.get("config", {}))
    return TorchEngine(Source.of(model), config, plan)


def train(engine: Any, first: int = 0, last: int = 6) -> list[tuple[float, float | None, float]]:
    plan = plan_of(TASK, 1)
    return [one_step(engine, plan, step, 331, "infinite" if step == 3 else None) for step in range(first, last)]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    with one_process(tmp_path_factory.mktemp("group")):
        yield


def test_weights_are_the_rounded_masters_and_learn_as_with_autocast(small: Path) -> None:
    engine, autocast = engine_of(small), engine_of(small, plan={})
    masters = {name: engine._masters.of(p) for name, p in engine._module.named_parameters()}
    for (name, exact), parameter in zip(masters.items(), autocast._module.parameters(), strict=True):
        assert exact.dtype == torch.float32
        assert torch.equal(exact, parameter), name
    initial = {name: exact.clone() for name, exact in masters.items()}
    computed, expected = train(engine), train(autocast)
    for (loss, norm, moved), (usual, usual_norm, _) in zip(computed, expected, strict=True):
        assert loss == pytest.approx(usual, rel=2e-3)
        assert norm == pytest.approx(usual_norm, rel=0.02, nan_ok=True)
        assert moved == 0  # a step with an infinite gradient changes nothing
    for name, parameter in engine._module.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, masters[name].bfloat16()), name
        assert parameter.grad is None
        assert not torch.equal(masters[name], initial[name]), name
        assert not torch.equal(masters[name], parameter.float()), name  # updates below the precision of bf16
    assert {buffer.dtype for buffer in engine._module.buffers() if buffer.is_floating_point()} <= {torch.float32}


def test_gradients_of_micro_batches_are_summed_in_fp32(small: Path) -> None:
    engine, singles = engine_of(small), []
    plan = plan_of(TASK, 1)
    for skips in ((0,), (1,), (0, 1)):
        torch.manual_seed(0)
        tokens = torch.randint(0, 331, (2, 2, 16))
        for number in skips:
            from wellread.corpus.batch import Batch

            targets = torch.ones(2, 16, dtype=torch.bool)
            targets[:, 0] = False
            batch = Batch(torch.arange(2), torch.full((2,), 16), tokens[number], targets)
            engine.forward_backward(batch, 1 / plan.batch_size, last=number == skips[-1])
        singles.append([master.grad.clone() for master in engine._masters.module.parameters()])
        engine.drop()
    for first, second, both in zip(*singles, strict=True):
        assert both.dtype == torch.float32
        assert torch.equal(both, first + second)


def test_a_checkpoint_has_the_masters_and_resumes_exactly(small: Path, tmp_path: Path) -> None:
    engine = engine_of(small)
    losses = train(engine, 0, 2)
    engine.save(tmp_path)
    later = train(engine, 2)
    resumed = engine_of(tmp_path / "model")
    assert resumed.fits(tmp_path / "state")
    resumed.load(tmp_path / "state", 2)
    again = train(resumed, 2)
    assert [each[:1] for each in again] == [each[:1] for each in later]
    assert losses[0] != later[0]
    (tmp_path / "end").mkdir()
    (tmp_path / "again").mkdir()
    engine.snapshot()(tmp_path / "end")
    resumed.save(tmp_path / "again")
    assert same_weights(tmp_path / "end" / "model", tmp_path / "again" / "model")
    assert not same_weights(tmp_path / "end" / "model", tmp_path / "model")


def test_untrained_masters_are_saved_bit_exactly(small: Path, tmp_path: Path) -> None:
    engine_of(small).save(tmp_path)
    assert same_weights(tmp_path / "model", small)


@pytest.mark.long
def test_two_ranks_learn_as_one(small: Path, tmp_path: Path) -> None:
    task = TASK | {"model": small, "infinite": [3]}
    ((one,),) = [run_ranks(tmp_path / "one", [task | {"micro": 4}], 1)]
    ((two,),) = [run_ranks(tmp_path / "two", [task | {"save": tmp_path / "saved"}], 2)]
    assert two[0]["losses"] == two[1]["losses"]
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-3)
    assert two[0]["norms"] == pytest.approx(one[0]["norms"], rel=0.02, nan_ok=True)
