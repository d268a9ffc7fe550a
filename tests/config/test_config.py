"""Configuration: defaults, ranges, and conversion to and from a dict, YAML and flags."""

import dataclasses
import io
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wellread.cli import add_dataclass, new_parser, parse_dataclass
from wellread.config import CONFIGS, OptimConfig, PretrainConfig, RunConfig, from_dict, kind_of, to_dict
from wellread.config.flat import flat, keys_of
from wellread.errors import UserError
from wellread.recipes.registry import handed_over, received


def test_defaults_are_as_documented() -> None:
    config = RunConfig()
    assert (config.model.name, config.model.dtype, config.data.holdout) == ("tiny", "bf16", 0.25)
    assert (config.schedule.seed, config.watch.log_every, config.cluster.name) == (0, 10, "local")
    assert (config.watch.eval_every, config.watch.eval_samples) == (None, 256)
    assert (config.cluster.strategy, config.save.resume, config.save.save_schedule) == ("auto", "auto", "linear")
    assert (config.data.max_bad_rows, config.data.corpora) == (0, "corpora")
    assert (config.optim.beta1, config.optim.beta2, config.optim.eps, config.optim.clip) == (0.9, 0.95, 1e-8, 1.0)
    assert (config.optim.weight_decay, config.optim.warmup, config.optim.min_lr) == (0.01, 0.03, 0.1)
    undecided = {key for key, value in flat(config).items() if value is None}
    assert undecided == {
        "data", "out", "steps", "epochs", "batch_size", "micro_batch_size", "seq_len", "save_every",
        "ds_config", "nvme_path", "template", "freeze", "eval_every", "spike_factor", "peak_tflops",
        "canary_controls", "canary_tokens", "influence", "marks",
    }  # fmt: skip


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().schedule.seed = 1  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    """The docstring of a field is the help of its flag."""
    for kind in (RunConfig, OptimConfig):
        parser = new_parser("x", "", "")
        add_dataclass(parser, kind)
        text = " ".join(parser.format_help().split())
        missing = [key for key in keys_of(kind) if f"--{key} " not in text and key != "optim"]
        assert not missing
        helps = {action.dest: action.help for action in parser._actions}
        assert not [key for key in keys_of(kind) if not helps.get(key)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"batch_size": -4}, "--batch_size -4: must be at least 1"),
        ({"micro_batch_size": 0}, "--micro_batch_size 0: must be at least 1"),
        ({"seq_len": 0}, "--seq_len 0: must be at least 1"),
        ({"eval_samples": 0}, "--eval_samples 0: must be at least 1"),
        ({"save_every": 0}, "--save_every 0: must be at least 1"),
        ({"log_every": 0}, "--log_every 0: must be at least 1"),
        ({"nodes": 0}, "--nodes 0: must be at least 1"),
        ({"ranks_per_node": 0}, "--ranks_per_node 0: must be at least 1, or auto"),
        ({"epochs": 0.0}, "--epochs 0.0: must be above 0"),
        ({"epochs": float("nan")}, "--epochs nan: must be above 0"),
        ({"holdout": 1.0}, "--holdout 1.0: must be at least 0 and below 1 (a fraction of the documents)"),
        ({"holdout": -0.1}, "--holdout -0.1: must be at least 0 and below 1 (a fraction of the documents)"),
        ({"holdout": float("nan")}, "--holdout nan: must be at least 0 and below 1 (a fraction of the documents)"),
        ({"max_bad_rows": -1}, "--max_bad_rows -1: must be at least 0"),
        ({"seed": -1}, "--seed -1: must be at least 0 and below 2^64"),
        ({"seed": 2**64}, "--seed 18446744073709551616: must be at least 0 and below 2^64"),
        ({"optim": {"lr": 0.0}}, "--optim.lr 0.0: must be above 0"),
        ({"generations": -1}, "--generations -1: must be at least 0"),
        ({"spike_factor": 1.0}, "--spike_factor 1.0: must be above 1 (times the median loss)"),
        ({"peak_tflops": 0.0}, "--peak_tflops 0.0: must be above 0"),
        (
            {"tracker": "tensorboard,comet"},
            "--tracker tensorboard,comet: unknown: comet; choose from tensorboard, wandb",
        ),
        ({"optim": {"lr": float("nan")}}, "--optim.lr nan: must be above 0"),
        ({"optim": {"beta2": 1.5}}, "--optim.beta2 1.5: must be between 0 and 1"),
        ({"optim": {"warmup": -0.5}}, "--optim.warmup -0.5: must be between 0 and 1"),
        ({"optim": {"min_lr": 2.0}}, "--optim.min_lr 2.0: must be between 0 and 1"),
        ({"optim": {"clip": -1.0}}, "--optim.clip -1.0: must be at least 0"),
        ({"optim": {"weight_decay": -0.1}}, "--optim.weight_decay -0.1: must be at least 0"),
        ({"optim": {"eps": 0.0}}, "--optim.eps 0.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        RunConfig.of(**values)
    assert str(refused.value) == message


def test_limits_are_accepted() -> None:
    config = RunConfig.of(
        holdout=0.0, seed=2**64 - 1, max_bad_rows=0, optim=OptimConfig(clip=0.0, warmup=1.0, min_lr=0.0)
    )
    assert config.schedule.seed == 18446744073709551615


def test_unknown_keys_of_a_saved_config_are_named() -> None:
    with pytest.raises(UserError) as refused:
        from_dict(RunConfig, {"steps": 3, "zeta": 1, "alpha": 2})
    assert str(refused.value) == "RunConfig: unknown keys alpha, zeta; written by another version of wellread?"
    with pytest.raises(UserError, match="OptimConfig: unknown keys momentum"):
        from_dict(RunConfig, {"optim": {"momentum": 0.9}})


PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine may take a second for the first example."""
words = st.text(string.ascii_letters + string.digits + "-_./@ ", min_size=1, max_size=12).filter(
    lambda t: t.strip() == t
)
names = words | st.sampled_from(["null", "NULL", "Null", "# x", "true", "No", "1e3", ".nan"])
fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
configs = st.builds(
    RunConfig.of,
    model=names,
    data=st.none() | names,
    out=st.none() | names,
    steps=st.none() | st.integers(1, 10**9),
    epochs=st.none() | st.floats(1e-6, 1e6),
    batch_size=st.none() | st.integers(1, 10**6),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from(["bf16", "fp32"]),
    strategy=st.sampled_from(["auto", "ddp", "zero1", "zero2", "zero3"]),
    holdout=fractions,
    ranks_per_node=st.just("auto") | st.integers(1, 64),
    optim=st.builds(OptimConfig, lr=st.none() | st.floats(1e-12, 1e3), beta1=fractions, warmup=fractions),
)


@PATIENT
@given(configs)
def test_dict_and_yaml_round_trip(config: RunConfig) -> None:
    assert from_dict(RunConfig, to_dict(config)) == config
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.fixture(scope="module")
def parser():  # type: ignore[no-untyped-def]
    parser = new_parser("x", "", "")
    add_dataclass(parser, RunConfig)
    return parser


def to_argv(config: RunConfig) -> list[str]:
    """Flags that rebuild `config`; without those at their default."""
    values, usual = dotted(to_dict(config)), dotted(to_dict(RunConfig()))
    return [f"--{name}={value}" for name, value in values.items() if value != usual[name]]


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for name, value in values.items():
        flags |= dotted(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flags


@PATIENT
@given(config=configs)
def test_settings_handed_over_to_prepare_are_exact(config: RunConfig) -> None:
    """`finetune prepare` receives the settings of the launcher, to the last digit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(handed_over(config)))
        assert received("finetune") == config


@PATIENT
@given(config=configs)
def test_flags_round_trip(parser, config: RunConfig) -> None:  # type: ignore[no-untyped-def]
    """Flags become settings without loss, to the last digit."""
    assert parse_dataclass(parser, RunConfig, to_argv(config)) == (config, {"config": None})


@pytest.mark.parametrize("word", ["null", "NULL", "~", "# x", "true", "1e3"])
def test_texts_are_not_converted(parser, word: str) -> None:  # type: ignore[no-untyped-def]
    """YAML reads null as nothing; then a run would silently use the default directory."""
    for argv in ([f"--out={word}", f"--model={word}"], ["--out", word, "--model", word], ["--out=x", "--out", word]):
        config, _ = parse_dataclass(parser, RunConfig, argv)
        expected = str(Path(word).expanduser()) if word == "~" else word  # a home, not YAML's null
        assert config.save.out == expected
        assert config.model.name in (expected, "tiny")
        assert config.data.name is None


def test_null_in_a_file_is_the_default(parser, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text("out: null\ndata: 'null'\n")
    config, _ = parse_dataclass(parser, RunConfig, ["--config", str(tmp_path / "a.yaml")])
    assert (config.save.out, config.data.name) == (None, "null")
    assert parse_dataclass(parser, RunConfig, to_argv(config))[0] == config


def test_settings_belong_to_the_recipe_that_has_their_keys() -> None:
    """Also with missing keys, from an older version, and with unknown keys, from a newer one."""
    for kind in (RunConfig, PretrainConfig):
        values = to_dict(kind())
        assert kind_of(values) is kind
        assert kind_of({name: values[name] for name in values if name != "compile"} | {"later": 1}) is kind
        with pytest.raises(UserError, match=f"{kind.__name__}: unknown keys later"):
            from_dict(kind, values | {"later": 1})


def test_configs_are_found() -> None:
    names = {path.name for path in CONFIGS.iterdir()}
    assert {"models.yaml", "data.yaml", "ds", "clusters"} <= names
