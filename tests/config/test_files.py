"""Files that hold settings or a plan: a wrong value is one line that names the file and the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wellread.config import PretrainConfig, RunConfig, from_file, to_dict
from wellread.errors import UserError
from wellread.planning.plan import Plan
from wellread.run import RunDirectory
from wellread.text_io import load_yaml, yaml_loader


@pytest.mark.parametrize("kind", [RunConfig, PretrainConfig])
def test_what_is_written_is_read(kind: type[RunConfig], tmp_path: Path) -> None:
    config = kind.of(steps=7, nvme_path="/x", ranks_per_node=2)
    RunDirectory(tmp_path).write_config(config)
    assert RunDirectory(tmp_path).config() == config


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"optim": 5}, "optim: expected an object, found 5"),
        ({"optim": {"lr": "fast"}}, "optim.lr: expected a number or null, found 'fast'"),
        ({"steps": [1]}, "steps: expected a whole number or null, found [1]"),
        ({"pack": "yes"}, "pack: expected true or false, found 'yes'"),
        ({"ranks_per_node": 1.5}, "ranks_per_node: expected a whole number or a text, found 1.5"),
        ({"holdout": 7}, "--holdout 7: must be at least 0 and below 1 (a fraction of the documents)"),
        ({"stepps": 1}, "RunConfig: unknown keys stepps; written by another version of wellread?"),
    ],
)
def test_wrong_values_name_file_and_key(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        from_file(RunConfig, to_dict(RunConfig()) | changes, "x/config.yaml")
    assert str(error.value) == f"x/config.yaml: damaged ({problem}); restore it from a copy"


@pytest.mark.parametrize("text", ["", "[]", "- 1", "5", "a: [", "\x00", "steps: 1\n1: 2\n", "[" * 3000])
def test_configs_that_are_not_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"/config\.yaml: damaged \(.+\); restore it from a copy$"):
        RunDirectory(tmp_path).config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{}", "'ranks' is missing"), ("[]", "content: expected an object, found [[]]"), ("{", "Expecting property name")],
)
def test_plans_that_are_not_plans(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=rf"/plan\.json: damaged \({problem}"):
        Plan.open(tmp_path / "plan.json")


def test_yaml_that_is_written_is_plain(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_config(RunConfig())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == to_dict(RunConfig())


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {c: 1, a: 2, a: 3}", "- {a: 1, 'a': 1}"])
def test_keys_that_appear_twice_in_yaml(text: str) -> None:
    for loader in ("SafeLoader", "BaseLoader"):
        with pytest.raises(yaml.YAMLError, match="key 'a' appears twice; remove one"):
            yaml.load(text, Loader=yaml_loader(loader))
    with pytest.raises(yaml.YAMLError, match="key 'a' appears twice"):
        load_yaml(text.encode())
    assert load_yaml(b"x: &x {a: 1}\ny: {<<: *x, b: 2}") == {"x": {"a": 1}, "y": {"a": 1, "b": 2}}
