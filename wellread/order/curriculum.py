"""Parse and check the YAML file of a curriculum, without reading samples. docs/orders.md explains the keys."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.order import spec as specs
from wellread.order.spec import Condition, OrderSpec
from wellread.text_io import load_yaml
from wellread.whole import read_whole

MOST_BATCHES = 10_000_000
"""Most batches of an insertion or of a phase; more are taken for a mistake, before memory is used for them."""

MOST_EPOCHS = 100_000


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Which samples a phase or an insertion selects: those that satisfy all conditions."""

    where: tuple[Condition, ...] = ()
    sets: tuple[str, ...] = ()
    """Names of data sets of the corpus; empty: all."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A range of batches with its own order."""

    place: str
    """File and key, for error messages."""
    name: str
    spec: OrderSpec
    pool: Pool
    epochs: float | None
    """Number of epochs over its samples; None when `steps` is set."""
    steps: int | None
    """Number of batches; None when `epochs` is set."""


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """Samples that are read only in slots of the given batches."""

    place: str
    tag: str
    samples: tuple[int, ...]
    path: str
    """A .npy file of sample ids. Either `path`, `samples` or `pool` is set, the others are empty."""
    pool: Pool
    at: tuple[int, ...]
    """Batch ids, ascending."""
    slots: int | None
    """Number of slots in each of these batches; None: one per sample."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """The order of a complete run: phases one after another, and insertions."""

    path: Path
    phases: tuple[Phase, ...]
    insertions: tuple[Insertion, ...]
    sha256: str
    """Hash of the file's content as JSON with sorted keys, so independent of comments and layout."""


def read(path: Path, flag: str) -> Curriculum:
    """Read a curriculum from a YAML file.

    Raises
    ------
    UserError
        When the file is not a valid curriculum; names the key and its place.
    """
    import yaml

    try:
        content = load_yaml(read_whole(path))
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: {path} is not YAML ({' '.join(str(error).split())})") from None
    top = _mapping(content, str(path), ("phases", "insert"))
    phases = [_phase(value, f"{path}: phases[{i}]", path) for i, value in enumerate(_items(top, "phases", str(path)))]
    if not phases:
        raise UserError(f"{path}: phases: is missing or empty; list at least one, e.g. - order: shuffle")
    insert = [
        _insertion(value, f"{path}: insert[{i}]", path) for i, value in enumerate(_items(top, "insert", str(path)))
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return Curriculum(
        path=path,
        phases=tuple(phases),
        insertions=tuple(insert),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _phase(value: Any, place: str, path: Path) -> Phase:
    keys = _mapping(value, place, ("name", "order", "where", "sets", "epochs", "steps"))
    spec = specs.parse(_text(keys.get("order", "shuffle"), f"{place}.order"), f"{place}.order:")
    if spec.kind == "curriculum":
        raise UserError(f"{place}.order: a curriculum cannot contain another; choose {specs.FORMS}")
    if spec.kind == "file":
        spec = OrderSpec(kind="file", path=str(path.parent / Path(spec.path).expanduser()))
    epochs, steps = keys.get("epochs"), keys.get("steps")
    if epochs is not None and steps is not None:
        raise UserError(f"{place}: has epochs and steps; keep one of them")
    if steps is not None:
        if _integer(steps, f"{place}.steps", 1) > MOST_BATCHES:
            raise UserError(f"{place}.steps: {steps}; choose at most {MOST_BATCHES:,}")
    elif epochs is not None and (
        isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 < epochs <= MOST_EPOCHS
    ):
        raise UserError(f"{place}.epochs: {epochs!r}; expected a number above 0, at most {MOST_EPOCHS:,}")
    return Phase(
        place=place,
        name=_text(keys.get("name", ""), f"{place}.name"),
        spec=spec,
        pool=_pool(keys, place),
        epochs=None if steps is not None else float(epochs or 1),
        steps=steps,
    )


def _insertion(value: Any, place: str, path: Path) -> Insertion:
    keys = _mapping(value, place, ("tag", "samples", "file", "where", "sets", "at", "slots"))
    ways = [key for key in ("samples", "file") if key in keys] + ["where or sets"] * ("where" in keys or "sets" in keys)
    if len(ways) != 1:
        raise UserError(
            f"{place}: has {' and '.join(ways) or 'no samples'}; give one of samples, file, or where and sets"
        )
    samples = _list(keys.get("samples", []), f"{place}.samples")
    ranges = [_batches(value, f"{place}.at") for value in _entries(keys.get("at"))]
    if sum(-(-(each.stop - each.start) // each.step) for each in ranges) > MOST_BATCHES:
        raise UserError(f"{place}.at: more than {MOST_BATCHES:,} batches; correct start, stop and step")
    at = sorted({batch for each in ranges for batch in each})
    if not at:
        raise UserError(f"{place}.at: is missing or empty; list batch ids, e.g. [10, 20]")
    if not _text(keys.get("tag", ""), f"{place}.tag"):
        raise UserError(f"{place}.tag: is missing; name the insertion, e.g. canary")
    if "slots" in keys:
        _integer(keys["slots"], f"{place}.slots", 1)
    return Insertion(
        place=place,
        tag=keys["tag"],
        samples=tuple(_integer(sample, f"{place}.samples", 0) for sample in samples),
        path=str(path.parent / Path(_text(keys["file"], f"{place}.file")).expanduser()) if "file" in keys else "",
        pool=_pool(keys, place),
        at=tuple(at),
        slots=keys.get("slots"),
    )


def _pool(keys: dict[str, Any], place: str) -> Pool:
    conditions = [_text(text, f"{place}.where") for text in _list(keys.get("where"), f"{place}.where")]
    return Pool(
        where=tuple(specs.condition(text, f"{place}.where: {text}") for text in conditions),
        sets=tuple(_text(name, f"{place}.sets") for name in _list(keys.get("sets"), f"{place}.sets")),
    )


def _batches(value: Any, place: str) -> range:
    """Batch ids of one entry of `at`: a number, or start, stop and step. (YAML reads 20:40 as the number 1240.)"""
    if not isinstance(value, dict):
        return range(_integer(value, place, 0), value + 1)
    keys = _mapping(value, place, ("start", "stop", "step"))
    start, step = _integer(keys.get("start", 0), f"{place}.start", 0), _integer(keys.get("step", 1), f"{place}.step", 1)
    return range(start, _integer(keys.get("stop"), f"{place}.stop", start + 1), step)


def _mapping(value: Any, place: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected keys and values; the keys are {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(allowed)}"
            raise UserError(f"{place}: unknown key {str(key)!r}; {hint}")
    return value


def _items(keys: dict[str, Any], key: str, place: str) -> list[Any]:
    value = keys.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{place}: {key}: expected a list, each entry with a dash")
    return value


def _list(value: Any, place: str) -> list[Any]:
    """The entries of a list; a single value is a list of one."""
    if isinstance(value, dict):
        raise UserError(f"{place}: expected a value or a list of values")
    return _entries(value)


def _entries(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {value!r}; expected text")
    return value


def _integer(value: Any, place: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{place}: {value!r}; expected a whole number of at least {least}")
    return value
