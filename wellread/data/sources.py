"""Where rows come from: local JSON, JSONL and Parquet files, and sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.config import CONFIGS

SUFFIXES = (".jsonl", ".json", ".parquet")
SECONDS_TO_ANSWER = 10
"""How long the hub may take to say that it has a set."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set: a local file or a set of the hub, read in the columns of `schema` (None: recognised)."""

    name: str
    schema: str | None
    path: Path | None = None
    hub: str | None = None
    published_rows: int | None = None


@dataclass(frozen=True)
class Row:
    """One row as it was read; `fields` is None where it could not be, and `error` says why."""

    number: int
    fields: dict[str, Any] | None
    error: str | None = None


def registry() -> dict[str, dict[str, Any]]:
    """Sets known by name (configs/data.yaml)."""
    import yaml

    known: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / "data.yaml").read_text())
    return known


def find(data: str) -> Source:
    """Turn NAME, PATH or NAME@PATH into a source.

    Raises
    ------
    ValueError
        When the name is unknown, or the file is missing, empty or of an unknown kind.
    """
    known = registry()
    if "," in data:
        raise ValueError(f"--data {data}: mixtures of several sets are not supported yet; name one")
    if data in known:
        entry = known[data]
        path = CONFIGS / entry["file"] if "file" in entry else None
        return Source(
            name=data, schema=entry["schema"], path=path, hub=entry.get("hub"), published_rows=entry.get("rows")
        )
    name, at, file = (data, "", "") if Path(data).is_file() else data.partition("@")
    if at and name not in known:
        raise ValueError(f"--data {data}: unknown set {name!r}; known: {', '.join(known)}")
    path = Path(file if at else data)
    if not path.exists() and not at and path.suffix not in SUFFIXES and "/" not in data:
        raise ValueError(f"--data {data}: neither a known set ({', '.join(known)}) nor a file")
    _check_file(path, data)
    return Source(name=name if at else path.stem, schema=known[name]["schema"] if at else None, path=path)


def _check_file(path: Path, data: str) -> None:
    if not path.is_file():
        raise ValueError(f"--data {data}: {path} {'is not a file' if path.exists() else 'does not exist'}")
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"--data {data}: {path.suffix or 'no suffix'} is not a known kind of file ({' '.join(SUFFIXES)})"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"--data {data}: {path} is empty")


def fingerprint(source: Source) -> str:
    """Hash that identifies what `source` holds: of the bytes of a file, of the name of a hub set."""
    from wellread.runs import sha256_file

    return sha256_file(source.path) if source.path else f"hub:{source.hub}"


def rows(source: Source) -> Iterator[Row]:
    """Yield every row in the source's own order; a row that cannot be read is yielded with its error."""
    if source.path is None:
        yield from _hub_rows(source)
    elif source.path.suffix == ".jsonl":
        with open(source.path, "rb") as file:
            yield from jsonl_rows(file)
    elif source.path.suffix == ".json":
        yield from _json_rows(source.path)
    else:
        yield from parquet_rows(source.path)


def jsonl_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the row of each line that is not blank, numbered from 1."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _decoded(number, line)


def _decoded(number: int, line: bytes) -> Row:
    try:
        return _as_row(number, json.loads(line.strip()))
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Row(number, None, f"not JSON: {error.msg} at column {error.colno}")


def _as_row(number: int, value: object) -> Row:
    return Row(number, value) if isinstance(value, dict) else Row(number, None, "not a JSON object")


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}; one object a line belongs into a .jsonl file") from None
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a JSON list of objects, found {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield _as_row(number, value)


def parquet_rows(path: Path, rows_at_once: int = 4096) -> Iterator[Row]:
    """Yield the rows of a Parquet file; `rows_at_once` of them are in memory together."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    number = 0
    for batch in file.iter_batches(rows_at_once):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, value)


def _hub_rows(source: Source) -> Iterator[Row]:
    import datasets

    refusal = _asked_once(str(source.hub))
    try:
        loaded = datasets.load_dataset(source.hub, split="train")
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = (str(refusal or error).splitlines() or [type(refusal).__name__])[0]
        raise ValueError(
            f"--data {source.name}: hub set {source.hub} cannot be had ({reason}); "
            f"download its file and pass --data {source.name}@FILE"
        ) from None
    for number, value in enumerate(loaded, start=1):
        yield Row(number, dict(value))


def _asked_once(hub: str) -> Exception | None:
    """Ask the hub for `hub`; where it does not answer, let its client look into its cache alone, and say why.

    Left to itself the client asks again for half a minute, with two lines on stderr each time.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(hub, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # of the hub, its client or the network
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return error
    return None
