"""Models by name: registry entry, directory or hub name -> spec. Reads small JSON files only, never weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from wellread.config import CONFIGS, Init
from wellread.errors import UserError

SEARCH_PATH = "WELLREAD_MODELS"
"""Environment variable: directories (separated as in PATH) that hold models by registry name."""


@dataclass(frozen=True)
class PublishedStep:
    """One published checkpoint of a pretraining run."""

    revision: str
    """Branch of the hub repository; in suite v0 its number is not always the step's."""
    step: int
    """Batches read, counted in the run's own batches."""
    batch_size: int
    """Samples of one batch, 2,049 tokens each."""

    @property
    def samples(self) -> int:
        """Samples read: rows 0 … samples - 1 of Pythia's pre-shuffled Pile."""
        return self.step * self.batch_size


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What was published of a model's own training."""

    batch_size: int
    """Samples per batch."""
    lr: float
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where a model is and what is known of it before it is loaded."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    kv_heads: int | None = None
    """Heads of keys and values, where they are fewer than the others."""
    head_size: int | None = None
    """Width of a head, where it is not width / heads."""
    tied: bool | None = None
    """Whether the output embedding is the input embedding (None: as is usual in the family)."""
    attention_bias: bool | None = None
    """Whether the projections of attention add a bias (None: as is usual in the family)."""
    path: Path | None = None
    """Local directory in Hugging Face layout."""
    hub: str | None = None
    revision: str | None = None
    """Branch, tag or commit of the hub repository, such as step3000 of a Pythia model."""
    fresh: bool = False
    """Starts from random weights; its tokenizer is trained on the data."""
    pretraining: Pretraining | None = None
    lr: float = 2e-5
    batch_size: int = 32
    epochs: float = 3
    seq_len: int = 512


def registry() -> dict[str, dict[str, Any]]:
    """Models known by name (configs/models.yaml), those of a suite in all of its variants."""
    content = _models_file()
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


def _models_file() -> dict[str, dict[str, Any]]:
    import yaml

    content: dict[str, dict[str, Any]] = yaml.load((CONFIGS / "models.yaml").read_text(), Loader=_yaml_loader())
    return content


def _yaml_loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    if _is_hub_name(name):
        return _from_hub(name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"--model {name}: no such directory or known model; {hint}")


def _canonical(name: str) -> str:
    """The name that a model has today."""
    for old, new in _models_file()["aliases"].items():
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


def check_heads(where: str, width: int, heads: int, kv_heads: int) -> None:
    """Refuse heads that do not divide the width, or groups of them that do not come out even.

    Raises
    ------
    UserError
        One line that begins with `where`.
    """
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide the width {width}; choose a multiple of {heads}")
    if heads % kv_heads:
        raise UserError(f"{where}: {kv_heads} heads of keys and values do not divide {heads} heads")
    if width // heads % 2:
        raise UserError(f"{where}: heads of width {width // heads} cannot be rotated in pairs; make it even")


def _at_revision(asked: str, name: str, revision: str, known: dict[str, dict[str, Any]]) -> ModelSpec:
    if not revision or Path(name).is_dir() or known.get(name, {}).get("fresh"):
        raise UserError(f"--model {asked}: only models of the hub have revisions; leave the @ out")
    if name not in known:
        if _is_hub_name(name):
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


def steps_of(name: str) -> list[PublishedStep]:
    """Published checkpoints of a registry model, whichever variant; none where it is of no suite."""
    suite, plain = "v0" if name.endswith("-v0") else "v1", name.removesuffix("-v0").removesuffix("-deduped")
    return published_steps(plain, suite) if plain in _models_file()["published"][suite]["models"] else []


def published_steps(model: str, suite: str = "v1") -> list[PublishedStep]:
    """Published checkpoints of a model of the Pythia suite, in the order of training.

    Parameters
    ----------
    model : str
        Registry name without variant, e.g. pythia-160m; its -deduped twin has the same steps.
    suite : str
        v1: today's hub models; v0: the first release (hub names end in -v0).

    Raises
    ------
    UserError
        When the suite is unknown or the model is not in it.
    """
    suites = _models_file()["published"]
    if suite not in suites:
        raise UserError(f"suite {suite}: unknown; known: {', '.join(sorted(suites))}")
    found = suites[suite]
    if model not in found["models"]:
        others = sorted(name for name, other in suites.items() if model in other["models"])
        known = f"not in suite {suite}; it is in {', '.join(others)}" if others else "no steps were published"
        raise UserError(f"{model}: {known}")
    # Where batches were of twice the size, the revision's number is twice the step: it stands for the same samples.
    fold = 2 if model in found["doubled"] else 1
    numbers = [*found["early"], *range(found["every"], found["last"] + 1, found["every"])]
    return [PublishedStep(f"step{number}", number // fold, fold * found["batch_size"]) for number in numbers]


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


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
    path = _hub_file(name, "config.json", revision)
    short = name.rpartition("/")[2] + (f"@{revision}" if revision else "")
    return replace(_from_config(json.loads(path.read_text()), short, name), hub=name, revision=revision)


_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
"""What the model families call the same number."""
_OPTIONAL_KEYS = {
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "tied": "tie_word_embeddings",
    "attention_bias": "attention_bias",
}


def _from_config(config: dict[str, Any], name: str, where: str) -> ModelSpec:
    if "model_type" not in config:
        raise UserError(f"{where}: no model_type in it; is this a language model's config.json?")
    found: dict[str, int] = {}
    for field, keys in _KEYS.items():
        values = [config[key] for key in keys if isinstance(config.get(key), int)]
        if not values:
            raise UserError(f"{where}: none of {', '.join(keys)} in it; {config['model_type']} is not supported")
        found[field] = values[0]
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim") or 4 * found["width"]
    known = {field: config[key] for field, key in _OPTIONAL_KEYS.items() if config.get(key) is not None}
    return ModelSpec(name=name, family=config["model_type"], intermediate=int(inner), **cast(Any, found | known))


def _hub_file(repository: str, filename: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:
        raise _unreachable(repository, error) from None


def _unreachable(repository: str, error: Exception) -> UserError:
    reason = type(error).__name__ if not str(error) else str(error).strip().splitlines()[0]
    return UserError(
        f"--model {repository}: cannot be had from the hub ({reason}); put it into a directory of ${SEARCH_PATH} "
        "or pass its directory"
    )


def local_directory(spec: ModelSpec, *, weights: bool) -> Path:
    """Directory with the model's files; downloaded from the hub when it is not on this machine.

    Parameters
    ----------
    weights : bool
        Also the weights, not only the configuration and the tokenizer.

    Raises
    ------
    UserError
        When the hub cannot be reached.
    """
    return spec.path if spec.path is not None else _from_cache(str(spec.hub), spec.revision, weights=weights)


def named_directory(name: str, revision: str | None) -> Path:
    """Directory of a model that an adapter names: a path, or a repository of the hub.

    Raises
    ------
    UserError
        When it is not there.
    """
    if Path(name).is_dir():
        return Path(name)
    if _is_hub_name(name):
        return _from_cache(name, revision, weights=True)
    raise UserError(f"{name}: the adapter's base model is not there; put it back, or mend adapter_config.json")


def _from_cache(repository: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(repository, error) from None


BLOCK = 1 << 20
"""Bytes hashed at each place of a weight file."""


def fingerprint(spec: ModelSpec, init: Init = "pretrained") -> str:
    """Identify initial weights: of a fresh model by its sizes or config, of any other by its config and weights.

    A weight file is hashed whole up to 64 MiB, beyond that at 64 evenly spaced blocks of 1 MiB, together with its size:
    two different trainings differ in every block, and a 24 GB model still answers within a second.
    """
    if spec.fresh:
        sizes: tuple[Any, ...] = (
            spec.family, spec.layers, spec.width, spec.heads, spec.intermediate, spec.vocab, spec.positions
        )  # fmt: skip
        if spec.kv_heads or spec.tied:
            sizes += (spec.kv_heads, spec.tied)
        return "fresh:" + hashlib.sha256(repr(sizes).encode()).hexdigest()[:32]
    if init == "fresh":
        config = (local_directory(spec, weights=False) / "config.json").read_bytes()
        return "fresh:" + hashlib.sha256(config).hexdigest()[:32]
    return fingerprint_directory(local_directory(spec, weights=True))


def fingerprint_directory(directory: Path) -> str:
    """Identify the weights in a directory, as `fingerprint` does."""
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin")):
        state.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            last = max(path.stat().st_size - BLOCK, 0)
            for position in sorted({last * i // 63 // BLOCK * BLOCK for i in range(63)} | {last}):
                file.seek(position)
                state.update(file.read(BLOCK))
    return "weights:" + state.hexdigest()[:32]
