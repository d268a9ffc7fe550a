"""Look up models by name: registry entry, directory or hub name -> spec. Reads only small JSON files, never weights."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.models.configs import (
    CONFIG,
    as_json,
    check_generation,
    check_tokens,
    read_config,
    refuse_quantized,
    rope_limit,
)
from wellread.models.directories import SEARCH_PATH, hub_file, is_hub_name
from wellread.models.families import INNER_KEYS, KEYS, OPTIONAL_KEYS
from wellread.models.headers import has_separate_head
from wellread.models.published import PublishedStep, models_file, steps_of
from wellread.models.spec import ModelSpec, Pretraining, check_heads

MOST = (100_000_000, 10_000)
"""Largest size of a model that is meant seriously, and largest number of its layers."""
SWITCHES = ("tied", "attention_bias")
"""Fields of ModelSpec that are true or false."""


def registry() -> dict[str, dict[str, Any]]:
    """Models known by name (configs/models.yaml), including all variants of models in a suite."""
    content = models_file()
    suites, plain = content["published"], {k: v for k, v in content.items() if k not in ("published", "aliases")}
    entries = {}
    for name, entry in plain.items():
        entries[name] = entry
        for suite, deduped in ((suite, deduped) for suite in suites for deduped in ("", "-deduped")):
            if name in suites[suite]["models"]:
                variant = deduped + ("" if suite == "v1" else f"-{suite}")
                entries[name + variant] = entry | _variant(name, variant, entry, suites[suite])
    return entries


def _variant(name: str, variant: str, entry: dict[str, Any], suite: dict[str, Any]) -> dict[str, Any]:
    batch_size = (2 if name in suite["doubled"] else 1) * suite["batch_size"]
    return {"hub": entry["hub"] + variant, "pretraining": entry["pretraining"] | {"batch_size": batch_size}}


def find(name: str) -> ModelSpec:
    """Find a model: first as a directory, then in the directories of WELLREAD_MODELS, the registry and the hub.

    Parameters
    ----------
    name : str
        May be NAME@REVISION for a revision of the hub, e.g. pythia-70m@step3000.

    Raises
    ------
    UserError
        When the model is unknown; suggests a similar name.
    """
    entries = registry()
    if Path(name).expanduser().is_dir():
        return _from_directory(Path(name).expanduser(), Path(name).expanduser().resolve().name)
    plain, at, revision = name.partition("@")
    plain = _canonical(plain)
    for directory in filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep)):
        for folder in dict.fromkeys((name, plain + at + revision)):
            path = Path(directory).expanduser() / folder
            if (path / "config.json").is_file():
                spec = _from_directory(path, plain + at + revision)
                return replace(spec, **_training_defaults(entries.get(plain, {})))
    if at:
        return _at_revision(name, plain, revision, entries)
    if plain in entries:
        return _from_entry(plain, entries[plain])
    if sizes := re.fullmatch(r"stories-(\d+)x(\d+)x(\d+)(?:x(\d+))?", plain):
        return _of_sizes(plain, *(int(size) for size in sizes.groups() if size))
    if is_hub_name(name):
        return _from_hub(name)
    raise UserError(f"--model {name}: not a directory or a known model; {_nearest(name, entries)}")


def _nearest(name: str, entries: dict[str, dict[str, Any]]) -> str:
    """Hint with the five models of the most similar names."""
    nearest = difflib.get_close_matches(name, entries, n=5, cutoff=0)
    if difflib.get_close_matches(name, entries, n=1, cutoff=0.4):
        return f"did you mean {nearest[0]}? Other names that are near: {', '.join(nearest[1:])}; see wellread models"
    return f"the nearest are {', '.join(nearest)}; see wellread models"


def _canonical(name: str) -> str:
    """Replace an alias by the current name of a model."""
    for old, new in models_file()["aliases"].items():
        if name == old or name.startswith(f"{old}-"):
            return str(new) + name.removeprefix(old)
    return name


def _from_entry(name: str, entry: dict[str, Any]) -> ModelSpec:
    pretraining = Pretraining(**entry["pretraining"]) if "pretraining" in entry else None
    return ModelSpec(name=name, **(entry | {"pretraining": pretraining} | _training_defaults(entry)))


def _of_sizes(name: str, width: int, layers: int, heads: int, kv_heads: int | None = None) -> ModelSpec:
    """A Llama with these sizes; other settings as in llama2.c's largest model (inner width: see its model.py)."""
    if not width or not layers or not heads or kv_heads == 0:
        raise UserError(f"--model {name}: sizes must not be 0; write stories-WIDTHxLAYERSxHEADS, e.g. stories-288x6x6")
    check_heads(f"--model {name}", width, heads, kv_heads or heads)
    usual = registry()["stories-110m"]
    inner = -(-(8 * width // 3) // 32) * 32
    sizes = {"width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads, "intermediate": inner}
    return _from_entry(name, usual | sizes | {"seq_len": 256})


def _at_revision(argument: str, name: str, revision: str, entries: dict[str, dict[str, Any]]) -> ModelSpec:
    if not revision or Path(name).is_dir() or entries.get(name, {}).get("fresh"):
        raise UserError(f"--model {argument}: only models of the hub have revisions; remove the @")
    if name not in entries:
        if is_hub_name(name):
            return _from_hub(name, revision)
        raise UserError(f"--model {argument}: {name} is not a known model; {_nearest(name, entries)}")
    if revision.startswith("step"):
        _published(argument, name, revision)
    return replace(_from_entry(f"{name}@{revision}", entries[name]), revision=revision)


def _published(argument: str, name: str, revision: str) -> PublishedStep | None:
    """The published checkpoint of this revision; None for a model that does not belong to a suite."""
    steps = {published.revision: published for published in steps_of(name)}
    if steps and revision not in steps:
        near = sorted(steps, key=lambda step: abs(_number(step) - _number(revision)))[:3]
        raise UserError(f"--model {argument}: this step was not published; the nearest are {', '.join(near)}")
    return steps.get(revision)


def published_step(name: str) -> PublishedStep | None:
    """The published checkpoint that a name such as pythia-70m@step3000 means; None if it does not belong to a suite.

    Raises
    ------
    UserError
        When it belongs to a suite, but has no step, or one that was not published.
    """
    plain, _, revision = name.partition("@")
    if not steps_of(_canonical(plain)):
        return None
    if not revision:
        raise UserError(f"--model {name}: which step? write {name}@stepN, e.g. {name}@step3000")
    return _published(name, _canonical(plain), revision)


def revision_step(name: str) -> int:
    """Step of a model by name, e.g. 3000 of pythia-70m@step3000; 0 for a name without one."""
    return _number(name.rpartition("@")[2].replace("-", "")) if "@" in name else 0


def _number(revision: str) -> int:
    digits = revision.removeprefix("step")
    return int(digits) if digits.isdecimal() else 0


def _training_defaults(entry: dict[str, Any]) -> dict[str, Any]:
    """Defaults for fine-tuning; the learning rate is a tenth of pretraining's peak, if it is known."""
    usual = {"lr": round(entry["pretraining"]["lr"] / 10, 12)} if "pretraining" in entry else {}
    return usual | {key: entry[key] for key in ("lr", "batch_size", "epochs", "seq_len") if key in entry}


def _from_directory(path: Path, name: str) -> ModelSpec:
    try:
        config = read_config(path / CONFIG)
    except FileNotFoundError:
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"--model {path}: contains only an adapter; merge it into its model first, with "
                "wellread export RUN --merged --out DIR"
            ) from None
        raise UserError(f"--model {path}: has no config.json; a model directory needs Hugging Face layout") from None
    if (path / "adapter_config.json").is_file():
        raise UserError(f"--model {path}: contains a model and an adapter; remove config.json or adapter_config.json")
    spec = replace(_from_config(config, name, str(path / CONFIG)), path=path.resolve())
    check_generation(path, spec.vocab)
    return replace(spec, tied=False) if spec.tied is not False and has_separate_head(path) else spec


def _from_hub(name: str, revision: str | None = None) -> ModelSpec:
    path = hub_file(name, CONFIG, revision)
    short = name.rpartition("/")[2] + (f"@{revision}" if revision else "")
    return replace(_from_config(read_config(path), short, name), hub=name, revision=revision)


def _from_config(config: dict[str, Any], name: str, where: str) -> ModelSpec:
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise UserError(f"{where}: has no model_type; pass the config.json of a language model")
    numbers: dict[str, Any] = {}
    for field, keys in KEYS.items():
        key = next((key for key in keys if config.get(key) is not None), None)
        if key is None:
            raise UserError(f"{where}: has none of {', '.join(keys)}; {family} is not supported")
        numbers[field] = _size(config, key, where)
    check_tokens(where, config, numbers["vocab"])
    refuse_quantized(config, where)
    inner = next((_size(config, key, where) for key in INNER_KEYS if config.get(key)), 4 * numbers["width"])
    optional: dict[str, Any] = {}
    for field, key in OPTIONAL_KEYS.items():
        value = config.get(key)
        if value is not None:
            optional[field] = _switch(config, key, where) if field in SWITCHES else _size(config, key, where)
    optional["rope_limit"] = rope_limit(config, where)
    return ModelSpec(name=name, family=family, intermediate=inner, **numbers, **optional)


def _size(config: dict[str, Any], key: str, where: str) -> int:
    value = config[key]
    most = MOST[key in KEYS["layers"]]
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(
            f"{where}: {key} {as_json(value)}: expected a whole number from 1 to {most:,}; restore the model's own file"
        )
    return value


def _switch(config: dict[str, Any], key: str, where: str) -> bool:
    value = config[key]
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} {as_json(value)}: expected true or false; restore the model's own file")
    return value
