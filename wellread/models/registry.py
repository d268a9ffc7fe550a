"""Models by name: registry entry, directory or hub name -> spec. Reads small JSON files only, never weights."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from wellread.errors import UserError
from wellread.models.directories import SEARCH_PATH, hub_file, is_hub_name
from wellread.models.families import INNER_KEYS, KEYS, OPTIONAL_KEYS
from wellread.models.published import models_file, steps_of
from wellread.models.spec import ModelSpec, Pretraining, check_heads


def registry() -> dict[str, dict[str, Any]]:
    """Models known by name (configs/models.yaml), those of a suite in all of its variants."""
    content = models_file()
    suites, plain = content["published"], {k: v for k, v in content.items() if k not in ("published", "aliases")}
    known = {}
    for name, entry in plain.items():
        known[name] = entry
        for suite, twin in ((suite, twin) for suite in suites for twin in ("", "-deduped")):
            if name in suites[suite]["models"]:
                variant = twin + ("" if suite == "v1" else f"-{suite}")
                known[name + variant] = entry | _variant(name, variant, entry, suites[suite])
    return known


def _variant(name: str, variant: str, entry: dict[str, Any], suite: dict[str, Any]) -> dict[str, Any]:
    batch_size = (2 if name in suite["doubled"] else 1) * suite["batch_size"]
    return {"hub": entry["hub"] + variant, "pretraining": entry["pretraining"] | {"batch_size": batch_size}}


def find(name: str) -> ModelSpec:
    """Look a model up: a directory, then the directories of WELLREAD_MODELS, then the registry and the hub.

    Parameters
    ----------
    name : str
        NAME@REVISION is that revision of the hub, as pythia-70m@step3000.

    Raises
    ------
    UserError
        When the name is none of these; names the nearest known one.
    """
    known = registry()
    if Path(name).expanduser().is_dir():
        return _from_directory(Path(name).expanduser(), Path(name).expanduser().resolve().name)
    plain, at, revision = name.partition("@")
    plain = _canonical(plain)
    for directory in filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep)):
        for called in dict.fromkeys((name, plain + at + revision)):
            path = Path(directory) / called
            if (path / "config.json").is_file():
                spec = _from_directory(path, plain + at + revision)
                return replace(spec, **_training_defaults(known.get(plain, {})))
    if at:
        return _at_revision(name, plain, revision, known)
    if plain in known:
        return _from_entry(plain, known[plain])
    if sizes := re.fullmatch(r"stories-(\d+)x(\d+)x(\d+)(?:x(\d+))?", plain):
        return _of_sizes(plain, *(int(size) for size in sizes.groups() if size))
    if is_hub_name(name):
        return _from_hub(name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"--model {name}: no such directory or known model; {hint}")


def _canonical(name: str) -> str:
    """The name that a model has today."""
    for old, new in models_file()["aliases"].items():
        if name == old or name.startswith(f"{old}-"):
            return str(new) + name.removeprefix(old)
    return name


def _from_entry(name: str, entry: dict[str, Any]) -> ModelSpec:
    pretraining = Pretraining(**entry["pretraining"]) if "pretraining" in entry else None
    return ModelSpec(name=name, **(entry | {"pretraining": pretraining} | _training_defaults(entry)))


def _of_sizes(name: str, width: int, layers: int, heads: int, kv_heads: int | None = None) -> ModelSpec:
    """A Llama of these sizes, everything else as the largest of llama2.c's has it (its inner width: see model.py)."""
    if not width or not layers or not heads or kv_heads == 0:
        raise UserError(f"--model {name}: no size may be 0; write stories-WIDTHxLAYERSxHEADS, as stories-288x6x6")
    check_heads(f"--model {name}", width, heads, kv_heads or heads)
    usual = registry()["stories-110m"]
    inner = -(-(8 * width // 3) // 32) * 32
    sizes = {"width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads, "intermediate": inner}
    return _from_entry(name, usual | sizes | {"seq_len": 256})


def _at_revision(asked: str, name: str, revision: str, known: dict[str, dict[str, Any]]) -> ModelSpec:
    if not revision or Path(name).is_dir() or known.get(name, {}).get("fresh"):
        raise UserError(f"--model {asked}: only models of the hub have revisions; leave the @ out")
    if name not in known:
        if is_hub_name(name):
            return _from_hub(name, revision)
        raise UserError(f"--model {asked}: {name} is no known model; known: {', '.join(known)}")
    steps = [published.revision for published in steps_of(name)]
    if steps and revision.startswith("step") and revision not in steps:
        near = sorted(steps, key=lambda step: abs(_number(step) - _number(revision)))[:3]
        raise UserError(f"--model {asked}: no such step was published; near are {', '.join(near)}")
    return replace(_from_entry(f"{name}@{revision}", known[name]), revision=revision)


def _number(revision: str) -> int:
    digits = revision.removeprefix("step")
    return int(digits) if digits.isdecimal() else 0


def _training_defaults(entry: dict[str, Any]) -> dict[str, Any]:
    """Defaults of a fine-tune; the learning rate is a tenth of the peak in pretraining where that is known."""
    usual = {"lr": round(entry["pretraining"]["lr"] / 10, 12)} if "pretraining" in entry else {}
    return usual | {key: entry[key] for key in ("lr", "batch_size", "epochs", "seq_len") if key in entry}


def _from_directory(path: Path, name: str) -> ModelSpec:
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"--model {path}: holds an adapter alone; merge it into its model first, with "
                "python -m finetune export RUN --merged --out DIR"
            ) from None
        raise UserError(f"--model {path}: no config.json there; a model directory needs Hugging Face layout") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path / 'config.json'}: not JSON ({error})") from None
    return replace(_from_config(config, name, str(path / "config.json")), path=path.resolve())


def _from_hub(name: str, revision: str | None = None) -> ModelSpec:
    path = hub_file(name, "config.json", revision)
    short = name.rpartition("/")[2] + (f"@{revision}" if revision else "")
    return replace(_from_config(json.loads(path.read_text()), short, name), hub=name, revision=revision)


def _from_config(config: dict[str, Any], name: str, where: str) -> ModelSpec:
    if "model_type" not in config:
        raise UserError(f"{where}: no model_type in it; is this a language model's config.json?")
    found: dict[str, int] = {}
    for field, keys in KEYS.items():
        values = [config[key] for key in keys if isinstance(config.get(key), int)]
        if not values:
            raise UserError(f"{where}: none of {', '.join(keys)} in it; {config['model_type']} is not supported")
        found[field] = values[0]
    inner = next((config[key] for key in INNER_KEYS if config.get(key)), 4 * found["width"])
    known = {field: config[key] for field, key in OPTIONAL_KEYS.items() if config.get(key) is not None}
    return ModelSpec(name=name, family=config["model_type"], intermediate=int(inner), **cast(Any, found | known))
