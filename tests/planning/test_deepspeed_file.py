"""A user's DeepSpeed file: the name of its strategy, keys it may not set, and the settings passed to DeepSpeed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from wellread.config import CONFIGS, RunConfig, Strategy
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.planning import deepspeed_file
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.planning.strategies import LADDER
from wellread.recipes.registry import resolve

CPU = {"device": "cpu"}
Written = Callable[[Any], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(settings: Any) -> Path:
        path = tmp_path / "my.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        return path

    return write


def zero(**settings: Any) -> dict[str, Any]:
    return {"zero_optimization": settings}


def plan(config: RunConfig, ds_config: dict[str, Any] | None = None) -> Plan:
    spec = find("tiny")
    cluster = Machine(cluster="local", nodes=1, ranks_per_node=2, device="cpu")
    counts = Counts(samples=100, trainable=80, sealed=20, exact=True)
    return make_plan(resolve(config, spec), spec, cluster, counts, ds_config)


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIGS / "ds").glob("*.json"))])
def test_every_file_in_configs_is_named_after_its_strategy(name: str) -> None:
    assert deepspeed_file.strategy(deepspeed_file.read(CONFIGS / "ds" / f"{name}.json")) == name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (zero(stage=1), "zero1"),
        (zero(stage=1, offload_optimizer=CPU), "zero1-offload"),
        (zero(stage=3, offload_optimizer={"device": "none"}), "zero3"),
        (zero(stage=3, offload_param=CPU), "zero3-offload"),
        (zero(stage=3, offload_optimizer=CPU | {"ratio": 0.3}), "zero3-partial"),
        (zero(stage=3, offload_optimizer=CPU, offload_param={"device": "nvme"}), "zero3-nvme"),
    ],
)
def test_stage_and_offload_determine_the_strategy(written: Written, settings: dict[str, Any], name: str) -> None:
    config = RunConfig.of(ds_config=str(written(settings)), nvme_path="/tmp")
    settings_read = deepspeed_file.read(config.cluster.ds_config or "")
    decided = plan(config, settings_read)
    assert (decided.engine, decided.strategy, decided.strategy_reason) == (
        "deepspeed",
        name,
        f"of {config.cluster.ds_config}",
    )
    assert decided.ds_config == settings
    assert Plan.from_json(json.dumps(decided.as_dict())).ds_config == settings


@pytest.mark.parametrize("key", sorted(deepspeed_file.OWNED))
def test_keys_that_the_plan_sets_are_refused(written: Written, key: str) -> None:
    path = written(zero(stage=2) | {key: "auto"})
    with pytest.raises(UserError, match=f"^--ds_config {path}: sets {key}, which the plan sets from [^\n]+$"):
        deepspeed_file.read(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "not JSON"),
        ("[]", "does not contain a JSON object"),
        (zero(stage=0), "stage must be 1, 2 or 3"),
        ({}, "stage must be 1, 2 or 3"),
        (zero(stage=2, offload_param=CPU), "only stage 3 can"),
        (zero(stage=2, offload_optimizer=CPU | {"ratio": 0.5}), "only stage 3 can"),
        (zero(stage=3, offload_optimizer={"device": "nvme", "nvme_path": "/x"}), "give --nvme_path instead"),
    ],
)
def test_unusable_files_are_refused_in_one_line(written: Written, settings: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        deepspeed_file.read(written(settings))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be read"):
        deepspeed_file.read(tmp_path / "none.json")


def test_plan_refuses_two_strategies_and_a_missing_nvme_path() -> None:
    with pytest.raises(UserError, match="is zero2, but --strategy zero3 is given"):
        plan(RunConfig.of(strategy="zero3", ds_config="my.json"), zero(stage=2))
    with pytest.raises(UserError, match="--strategy zero3-nvme: needs --nvme_path"):
        plan(RunConfig.of(strategy="zero3-nvme"))
    assert plan(RunConfig.of(strategy="zero3-nvme", nvme_path="/nowhere")).strategy == "zero3-nvme"


def test_nvme_path_must_exist_and_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed_file.check_nvme(str(tmp_path))
    with pytest.raises(UserError, match="no such directory"):
        deepspeed_file.check_nvme(str(tmp_path / "none"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="not writable"):
        deepspeed_file.check_nvme(str(tmp_path))


def test_settings_of_user_and_plan_are_passed_to_deepspeed(tmp_path: Path) -> None:
    from wellread.train.engines.deepspeed_engine import deepspeed_settings

    user_settings = zero(stage=3, reduce_bucket_size=1000, offload_param={"device": "nvme"}) | {
        "wall_clock_breakdown": True
    }
    config = RunConfig.of(ds_config="my.json", nvme_path=str(tmp_path), batch_size=8)
    settings = deepspeed_settings(config, plan(config, user_settings))
    assert settings["wall_clock_breakdown"] is True
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["offload_param"] == {"device": "nvme", "nvme_path": str(tmp_path)}
    assert (settings["train_batch_size"], settings["bf16"]) == (8, {"enabled": True})
    assert (
        "nvme_path" not in user_settings["zero_optimization"]["offload_param"]
    )  # the settings in the plan are not changed


@pytest.mark.parametrize(("requested", "on"), [("auto", False), ("on", True), ("off", False)])
def test_activation_checkpointing_is_in_the_plan(requested: Any, on: bool) -> None:
    assert plan(RunConfig.of(activation_checkpointing=requested)).activation_checkpointing is on


def test_every_strategy_is_a_flag_and_has_its_file() -> None:
    assert get_args(Strategy) == ("auto", *LADDER)
    speeds = [rung.speed for rung in LADDER.values()]
    assert speeds == sorted(speeds, reverse=True)
    under_deepspeed = {name: rung for name, rung in LADDER.items() if rung.engine == "deepspeed"}
    assert {path.stem for path in (CONFIGS / "ds").glob("*.json")} == set(under_deepspeed)
    for name, rung in under_deepspeed.items():
        settings = deepspeed_file.read(CONFIGS / "ds" / f"{name}.json")
        places = {"offload_optimizer": rung.optimizer, "offload_param": rung.parameters}
        assert deepspeed_file.strategy(settings) == name
        assert settings["zero_optimization"]["stage"] == rung.stage
        assert deepspeed_file.offload_devices(settings) == {k: place for k, place in places.items() if place != "gpu"}


def test_a_strategy_that_only_a_file_selects_has_no_estimate() -> None:
    decided = plan(RunConfig.of(ds_config="my.json"), zero(stage=1, offload_optimizer=CPU))
    assert (decided.strategy, decided.needs, decided.rung.ops) == ("zero1-offload", None, ["cpu_adam"])


@pytest.mark.parametrize("name", [name for name in LADDER if name != "ddp"])
def test_files_set_the_buckets_of_the_estimates(name: str) -> None:
    from wellread.planning.phases import BUCKET

    settings = deepspeed_file.read(CONFIGS / "ds" / f"{name}.json")["zero_optimization"]
    assert settings["reduce_bucket_size"] == BUCKET
    assert settings.get("overlap_comm", False) == (name == "zero2")  # the default of stage 3 is true


@pytest.mark.parametrize("name", ["zero3-partial", "zero3-nvme"])
def test_files_set_the_sub_group_size_of_the_estimates(name: str) -> None:
    from wellread.planning.phases import FINE_SUB_GROUP

    assert deepspeed_file.read(CONFIGS / "ds" / f"{name}.json")["zero_optimization"]["sub_group_size"] == FINE_SUB_GROUP


@pytest.mark.parametrize(
    "zero",
    [
        {"stage": True},
        {"stage": 2.0},
        {"stage": 3, "offload_optimizer": "cpu"},
        {"stage": 3, "offload_optimizer": None},
        {"stage": 3, "offload_optimizer": {"device": "disk"}},
        {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": "0.5"}},
        {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": -3}},
    ],
)
def test_values_that_deepspeed_would_not_handle_are_refused(tmp_path: Path, zero: Any) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    with pytest.raises(UserError, match=f"^--ds_config {path}: [^\n]+$"):
        deepspeed_file.read(path)
