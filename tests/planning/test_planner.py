"""The plan: defaults, batch sizes, steps and checkpoints, compared with numbers computed by hand."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellread.config import OptimConfig, RunConfig
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning.machine import Machine
from wellread.planning.parameters import parameters
from wellread.planning.plan import KEYS, Counts, Plan
from wellread.planning.planner import make_plan, replan
from wellread.planning.saving import save_steps
from wellread.planning.strategies import LADDER
from wellread.recipes.registry import resolve

SPEC = ModelSpec(
    name="toy", family="gpt_neox", layers=2, width=8, heads=2, intermediate=32, vocab=100, positions=64,
    lr=1e-3, batch_size=16, epochs=3, seq_len=128,
)  # fmt: skip


def counts(trainable: int = 498, sealed: int = 166) -> Counts:
    return Counts(samples=trainable + sealed, trainable=trainable, sealed=sealed, exact=True)


def local(ranks: int = 1) -> Machine:
    return Machine(cluster="local", nodes=1, ranks_per_node=ranks, device="cpu")


def plan(config: RunConfig, ranks: int = 1, *, trainable: int = 498) -> Plan:
    return make_plan(resolve(config, SPEC), SPEC, local(ranks), counts(trainable))


def test_defaults_come_from_the_model() -> None:
    config = resolve(RunConfig.of(model="toy"), SPEC)
    assert (config.data.name, config.save.out, config.schedule.batch_size, config.schedule.epochs) == (
        "dolly",
        "runs/toy-dolly",
        16,
        3,
    )
    assert config.data.seq_len == 64  # the spec asks for 128, but has only 64 positions
    assert config.optim.lr == 1e-3
    assert config.schedule.steps is None
    tiny = resolve(RunConfig(), find("tiny"))
    assert (tiny.data.name, tiny.save.out, tiny.optim.lr, tiny.data.seq_len) == (
        "sample",
        "runs/tiny-sample",
        2e-3,
        256,
    )


def test_flags_override_defaults() -> None:
    requested = RunConfig.of(
        steps=7, epochs=2.0, batch_size=4, seq_len=32, out="o", data="alpaca", optim=OptimConfig(lr=0.5)
    )
    config = resolve(requested, SPEC)
    assert (config.schedule.steps, config.schedule.epochs, config.schedule.batch_size, config.data.seq_len) == (
        7,
        None,
        4,
        32,
    )
    assert (config.save.out, config.data.name, config.optim.lr) == ("o", "alpaca", 0.5)
    assert resolve(config, SPEC) == config


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("dolly", "runs/toy-dolly"),
        ("../there/rows.jsonl", "runs/toy-rows"),
        ("dolly@there/my.rows.jsonl", "runs/toy-my"),
    ],
)
def test_name_of_the_run(data: str, out: str) -> None:
    assert resolve(RunConfig.of(data=data), SPEC).save.out == out


def test_a_sequence_is_at_most_as_long_as_the_positions() -> None:
    with pytest.raises(UserError) as refused:
        resolve(RunConfig.of(seq_len=65), SPEC)
    assert str(refused.value) == "--seq_len 65: toy has 64 positions; choose at most that"


@pytest.mark.parametrize(
    ("batch", "ranks", "requested", "micro", "accumulation"),
    [
        (16, 1, None, 8, 2),
        (16, 2, None, 8, 1),
        (16, 4, None, 4, 1),
        (16, 8, None, 2, 1),
        (24, 2, None, 6, 2),
        (22, 2, None, 1, 11),  # 11 samples per rank: 1 is the only divisor up to 8
        (7, 1, None, 7, 1),
        (64, 2, 4, 4, 8),
        (64, 2, 32, 32, 1),
    ],
)
def test_batch_arithmetic(batch: int, ranks: int, requested: int | None, micro: int, accumulation: int) -> None:
    decided = plan(RunConfig.of(batch_size=batch, micro_batch_size=requested), ranks)
    assert (decided.micro_batch_size, decided.accumulation, decided.ranks) == (micro, accumulation, ranks)


@given(st.integers(1, 64), st.integers(1, 64))
def test_micro_batches_fill_the_batch(per_rank: int, ranks: int) -> None:
    decided = plan(RunConfig.of(batch_size=per_rank * ranks), ranks)
    assert decided.micro_batch_size * decided.accumulation * decided.ranks == decided.batch_size == per_rank * ranks
    assert 1 <= decided.micro_batch_size <= 8


def test_a_batch_that_cannot_be_divided() -> None:
    for batch, ranks, near in ((15, 2, "14 or 16"), (3, 4, "4"), (100, 8, "96 or 104")):
        with pytest.raises(UserError) as refused:
            plan(RunConfig.of(batch_size=batch), ranks)
        assert str(refused.value) == f"--batch_size {batch}: not divisible by {ranks} ranks; choose {near}"
    with pytest.raises(UserError) as refused:
        plan(RunConfig.of(batch_size=16, micro_batch_size=3), 2)
    assert str(refused.value) == "--micro_batch_size 3: does not divide the 8 samples of each rank and step"


def test_steps_and_epochs() -> None:
    decided = plan(RunConfig.of(epochs=3.0))
    assert (decided.steps, decided.epochs) == (94, 3.0201)  # 3 * 498 / 16 = 93.375; 94 * 16 / 498
    assert plan(RunConfig.of(epochs=0.1), trainable=1600).steps == 10  # exactly a tenth
    decided = plan(RunConfig.of(steps=200))
    assert (decided.steps, decided.epochs, decided.warmup_steps) == (200, 6.4257, 6)
    assert plan(RunConfig.of(steps=200, optim=OptimConfig(warmup=0.0))).warmup_steps == 0
    assert plan(RunConfig.of(steps=1)).warmup_steps == 1
    config = resolve(RunConfig.of(steps=100, optim=OptimConfig(warmup=0.07)), SPEC)
    exact = make_plan(config, SPEC, local(), counts())
    assert exact.warmup_steps == 7  # although 0.07 * 100 is above 7 in binary
    assert replan(config, SPEC, replace(exact, warmup_steps=8), ()).warmup_steps == 8


def test_nothing_to_train_on() -> None:
    with pytest.raises(UserError) as refused:
        plan(RunConfig.of(data="x.jsonl"), trainable=0)
    assert str(refused.value) == "--data x.jsonl: no trainable samples; lower --holdout or give more rows"


@pytest.mark.parametrize(
    ("steps", "every", "schedule", "expected"),
    [
        (1, None, "linear", (0, 1)),
        (8, None, "linear", (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (94, None, "linear", (0, 20, 40, 60, 80, 94)),
        (100, None, "linear", (0, 20, 40, 60, 80, 100)),
        (374, None, "linear", (0, 50, 100, 150, 200, 250, 300, 350, 374)),
        (12, 4, "linear", (0, 4, 8, 12)),
        (12, 100, "linear", (0, 12)),
        (100, 25, "log", (0, 1, 2, 4, 8, 16, 32, 64, 100)),
        (64, 1, "log", (0, 1, 2, 4, 8, 16, 32, 64)),
        (2000, 500, "log", (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1500, 2000)),
    ],
)
def test_checkpoints(steps: int, every: int | None, schedule: str, expected: tuple[int, ...]) -> None:
    assert save_steps(steps, every, schedule) == expected


@given(st.integers(1, 10**6), st.none() | st.integers(1, 10**6), st.sampled_from(["linear", "log"]))
def test_first_and_last_step_are_always_saved(steps: int, every: int | None, schedule: str) -> None:
    if every is not None and steps // every > 10**4:
        every = steps
    saved = save_steps(steps, every, schedule)
    assert (saved[0], saved[-1]) == (0, steps)
    assert list(saved) == sorted(set(saved))
    if every is None:
        assert len(saved) <= 20  # about eight, plus the powers of two


def test_strategy() -> None:
    decided = plan(RunConfig(), 2)
    assert (decided.engine, decided.strategy) == ("torch", "ddp")
    assert decided.strategy_reason == "the fastest that fits (no limits given)"
    assert [entry["strategy"] for entry in decided.strategies] == list(LADDER)
    assert [entry["strategy"] for entry in decided.strategies if not entry["fits"]] == ["zero3-nvme"]  # no --nvme_path
    for stage in ("zero1", "zero2", "zero3"):
        decided = plan(RunConfig.of(strategy=stage))
        assert (decided.engine, decided.strategy, decided.strategy_reason) == ("deepspeed", stage, "asked for")


def test_batches_do_not_depend_on_strategy_or_ranks() -> None:
    """Ranks, strategy and micro-batch only divide a batch; steps and batches stay the same."""
    fixed = ("batch_size", "steps", "epochs", "seq_len", "save_steps", "warmup_steps")
    plans = [plan(RunConfig.of(strategy=s, micro_batch_size=m), r) for s, m, r in (("ddp", 1, 1), ("zero3", 2, 8))]  # type: ignore[arg-type]
    assert len({tuple(getattr(decided, name) for name in fixed) for decided in plans}) == 1


def test_json_round_trip() -> None:
    decided = plan(RunConfig(), 2)
    back = Plan.from_json(json.dumps(decided.as_dict()))
    assert back == decided
    assert back.as_dict() == decided.as_dict()
    assert tuple(decided.as_dict()) == KEYS
    nested = {"machine", "counts"}
    assert {field.name for field in fields(Plan)} - nested <= set(KEYS)  # as_dict includes every field
    with pytest.raises(UserError, match="Plan: unknown keys later; written by another version"):
        Plan.from_json(json.dumps(decided.as_dict() | {"later": 1}))


def test_files() -> None:
    assert plan(RunConfig.of(steps=12, save_every=6)).files() == [
        "config.yaml", "plan.json", "manifest.json", "corpus", "code/", "log/", "tb/", "record/",
        "checkpoints/step-00000000/", "checkpoints/step-00000006/", "checkpoints/step-00000012/",
    ]  # fmt: skip
    with_canaries = plan(RunConfig.of(steps=12, save_every=6)).files(canaries=True)
    assert with_canaries[3:6] == ["corpus", "order.json", "code/"]


# --- precision of accumulated gradients


def test_the_plan_states_the_precision_of_accumulated_gradients() -> None:
    assert accumulated(strategy="ddp") == accumulated(strategy="zero2", dtype="fp32") == "fp32"
    assert accumulated(strategy="zero2") == accumulated(strategy="zero1") == "bf16"
    for strategy in ("ddp", "zero2", "zero3", "zero3-offload"):
        assert accumulated(strategy=strategy, grad_accum_dtype="fp32") == "fp32"
    assert accumulated(strategy="zero1", grad_accum_dtype="fp32", dtype="fp32") == "fp32"


def accumulated(**flags: Any) -> str | None:
    return gpu_plan(model="pythia-410m", **flags).grad_accum_dtype


def gpu_plan(model: str, gpu_mem: float = 80, **flags: Any) -> Plan:
    spec = find(model)
    counts = Counts(samples=5000, trainable=4000, sealed=1000, exact=True)
    machine = Machine(device="cuda", ranks_per_node=2, gpu_mem=gpu_mem, host_mem=500)
    return make_plan(resolve(RunConfig.of(model=model, data="dolly", steps=9, **flags), spec), spec, machine, counts)


@pytest.mark.parametrize("strategy", ["zero1", "zero2-offload"])
def test_strategies_that_cannot_accumulate_in_fp32_are_refused(strategy: str) -> None:
    refusal = f"--grad_accum_dtype fp32: {strategy} cannot do this; choose one of ddp, zero2, zero3,"
    with pytest.raises(UserError, match=refusal):
        gpu_plan("pythia-410m", strategy=strategy, grad_accum_dtype="fp32")


def test_the_fastest_strategy_is_one_that_can() -> None:
    size: dict[str, Any] = {"model": "pythia-1.4b", "gpu_mem": 20, "micro_batch_size": 1, "seq_len": 128}
    assert gpu_plan(**size).strategy == "zero1"
    assert gpu_plan(**size, grad_accum_dtype="fp32").strategy == "zero2"


def test_frozen_weights_need_no_gradients_and_no_optimizer_state() -> None:
    spec = find("pythia-2.8b")
    machine = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cuda", gpu_mem=24, host_mem=64)
    plans = [
        make_plan(resolve(RunConfig.of(model="pythia-2.8b", steps=9, **more), spec), spec, machine, counts())
        for more in ({}, {"freeze": "*.layers.?.*,*.layers.1?.*,*.layers.2?.*,*.layers.30.*,*.embed_in.*"})
    ]
    assert [each.strategy for each in plans] == ["zero2-offload", "ddp"]
    full, frozen = ({e["strategy"]: e["parts"] for e in each.strategies} for each in plans)
    layer_and_head = parameters(spec).layer + 50304 * 2560 + 2 * 2560
    assert frozen["ddp"]["gpu"]["moments"] == 8 * layer_and_head
    assert frozen["ddp"]["gpu"]["weights"] == full["ddp"]["gpu"]["weights"] == 4 * parameters(spec).total
    assert frozen["zero2"]["gpu"]["master weights"] == 4 * layer_and_head
    for strategy in ("ddp", "zero2"):
        assert frozen[strategy]["disk"]["models"] == full[strategy]["disk"]["models"]
        assert frozen[strategy]["disk"]["states"] < full[strategy]["disk"]["states"]
