"""Kinds of tampering with a run that contradict something inside it, each with what verify must name.

Whatever a tamperer can make agree, agrees: the sha256 of an altered part and the size of an altered table are renewed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml

from wellread.files import sha256_file, with_checksum, write_json
from wellread.run import RunDirectory

Change = Callable[[RunDirectory], None]
LAST = "checkpoints/last/checkpoint.json"
PACKED, LISTED, METRICS, LORA = ("packed",), ("pretrain",), ("pretrain",), ("lora",)
ALL = ("finetune", "packed", "lora", "pretrain")
REAL = tuple(f"real-{run}" for run in ALL)
CHECKED = ("packed", "lora", *REAL)
"""Runs whose files have checksums; the others are of a version that wrote none."""


@dataclass(frozen=True)
class Kind:
    """One kind of tampering."""

    name: str
    line: str
    """Part of a line that verify prints."""
    change: Change
    runs: tuple[str, ...] = ALL


def place(run: RunDirectory, name: str) -> Path:
    """A file of the run; `last` is its newest checkpoint, `first` and `middle` its first and second."""
    steps = sorted(run.checkpoints.glob("step-*"))
    folders = {"last": steps[-1], "first": steps[0], "middle": steps[1]}
    top, *parts = name.split("/")
    if top == "checkpoints":
        return folders[parts[0]].joinpath(*parts[1:])
    return run.path / name


def no_checkpoints(run: RunDirectory) -> None:
    """Remove all checkpoints."""
    shutil.rmtree(run.checkpoints)


def rewrite(path: Path, content: Any) -> None:
    """Write a JSON file with a checksum of its new content, if it had one."""
    write_json(path, with_checksum(content) if "checksum" in content else content)


def json_value(name: str, key: str, value: Any) -> Change:
    """Replace the value at a dotted key of a JSON file; a function gets the old value."""

    def change(run: RunDirectory) -> None:
        content = json.loads(place(run, name).read_text())
        *outer, last = key.split(".")
        inner = content
        for part in outer:
            inner = inner[int(part) if isinstance(inner, list) else part]
        last_key: Any = int(last) if isinstance(inner, list) else last
        inner[last_key] = (
            value(inner.get(last) if isinstance(inner, dict) else inner[last_key]) if callable(value) else value
        )
        rewrite(place(run, name), content)

    return change


def stale(name: str, key: str, value: Any) -> Change:
    """Replace the value at a dotted key of a JSON file, and keep its checksum."""

    def change(run: RunDirectory) -> None:
        before = json.loads(place(run, name).read_text())["checksum"]
        json_value(name, key, value)(run)
        write_json(place(run, name), json.loads(place(run, name).read_text()) | {"checksum": before})

    return change


def edited(name: str, old: bytes, new: bytes, spaces: bool = False) -> Change:
    """Replace bytes of a file; with `spaces` remove as many spaces before the first end of a line."""

    def change(run: RunDirectory) -> None:
        content = place(run, name).read_bytes()
        assert old in content
        altered = content.replace(old, new, 1)
        place(run, name).write_bytes(altered.replace(b" \n", b"\n", 1) if spaces else altered)

    return change


def longer(file: str) -> Change:
    """Append a byte to a file of the corpus, and renew its size."""

    def change(run: RunDirectory) -> None:
        with open(run.corpus / file, "ab") as content:
            content.write(b"x")
        _renew_size(run, file)

    return change


def without_key(name: str, key: str) -> Change:
    """Remove the value at a dotted key of a JSON file."""

    def change(run: RunDirectory) -> None:
        content = inner = json.loads(place(run, name).read_text())
        *outer, last = key.split(".")
        for part in outer:
            inner = inner[int(part) if isinstance(inner, list) else part]
        del inner[last]
        rewrite(place(run, name), content)

    return change


def setting(section: str, key: str, value: Any) -> Change:
    """Replace a value of config.yaml; without a section at its top."""

    def change(run: RunDirectory) -> None:
        values = yaml.safe_load(run.config_file.read_text())
        (values[section] if section else values)[key] = value
        run.config_file.write_text(yaml.safe_dump(values))

    return change


def written(name: str, content: bytes = b"foreign") -> Change:
    """Write a file."""

    def change(run: RunDirectory) -> None:
        place(run, name).parent.mkdir(parents=True, exist_ok=True)
        place(run, name).write_bytes(content)

    return change


def added(name: str, listing: str = "files") -> Change:
    """Write a file into the newest checkpoint, and list it in its manifest."""

    def change(run: RunDirectory) -> None:
        path = place(run, f"checkpoints/last/{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"foreign")
        entry = {name: {"size": path.stat().st_size, "sha256": sha256_file(path)}}
        json_value(LAST, "files" if listing == "files" else listing, lambda files: (files or {}) | entry)(run)

    return change


def copied(pattern: str, name: str) -> Change:
    """Copy the last file of a pattern to another name in the run."""

    def change(run: RunDirectory) -> None:
        shutil.copyfile(sorted(run.path.glob(pattern))[-1], run.path / name)

    return change


def configured(name: str, key: str, value: Any, checkpoint: str = "middle") -> Change:
    """Replace the value at a key of a JSON file of one checkpoint's model, and renew its entry in the manifest."""

    def change(run: RunDirectory) -> None:
        manifest, path = (f"checkpoints/{checkpoint}/{each}" for each in ("checkpoint.json", f"model/{name}"))
        file = place(run, path)
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        entry = {f"model/{name}": {"size": file.stat().st_size, "sha256": sha256_file(file)}}
        json_value(manifest, "files", lambda files: files | entry)(run)

    return change


def removed(name: str) -> Change:
    """Remove a file or folder."""

    def change(run: RunDirectory) -> None:
        path = place(run, name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def flipped(name: str) -> Change:
    """Flip one bit in the middle of a file."""

    def change(run: RunDirectory) -> None:
        content = bytearray(place(run, name).read_bytes())
        content[len(content) // 2] ^= 1
        place(run, name).write_bytes(content)

    return change


def column(table: pyarrow.Table, name: str, alter: Callable[[list[Any]], Any]) -> pyarrow.Table:
    """The table with an altered column; `alter` changes the list of its values, or returns another."""
    values = table[name].to_pylist()
    values = alter(values) or values
    return table.set_column(
        table.column_names.index(name),
        name,
        pyarrow.array(values, pyarrow.string() if isinstance(values[0], str) else table[name].type),
    )


def recorded(alter: Callable[[pyarrow.Table], pyarrow.Table], part: int = 0) -> Change:
    """Alter the table of a part of the record, and renew its sha256."""

    def change(run: RunDirectory) -> None:
        head = json.loads((run.record / "head.json").read_text())
        path = run.record / head["parts"][part]["name"]
        pyarrow.parquet.write_table(alter(pyarrow.parquet.read_table(path)), path)
        head["parts"][part]["sha256"] = sha256_file(path)
        rewrite(run.record / "head.json", head)

    return change


def recorded_column(name: str, alter: Callable[[list[Any]], Any], part: int = 0) -> Change:
    """Alter a column of a part of the record."""
    return recorded(lambda table: column(table, name, alter), part)


def in_corpus(file: str, alter: Callable[[pyarrow.Table], pyarrow.Table]) -> Change:
    """Alter a table of the corpus, and renew its size."""

    def change(run: RunDirectory) -> None:
        path = run.corpus / file
        pyarrow.parquet.write_table(alter(pyarrow.parquet.read_table(path)), path)
        _renew_size(run, file)

    return change


def corpus_column(name: str, alter: Callable[[list[Any]], Any], file: str = "samples.parquet") -> Change:
    """Alter a column of a table of the corpus."""
    return in_corpus(file, lambda table: column(table, name, alter))


def array(name: str, alter: Callable[[Any], Any]) -> Change:
    """Alter an array of the run or its corpus; `alter` changes it, or returns another."""

    def change(run: RunDirectory) -> None:
        values = np.load(run.path / name)
        altered = alter(values)
        np.save(run.path / name, values if altered is None else altered)
        if name.startswith("corpus/"):
            _renew_size(run, name.removeprefix("corpus/"))

    return change


def _renew_size(run: RunDirectory, file: str) -> None:
    meta = json.loads((run.corpus / "corpus.json").read_text())
    meta["sizes"][file] = (run.corpus / file).stat().st_size
    if file in meta.get("sha256", {}):
        meta["sha256"][file] = sha256_file(run.corpus / file)
    rewrite(run.corpus / "corpus.json", meta)


def retyped(name: str, arrow_type: pyarrow.DataType) -> Callable[[pyarrow.Table], pyarrow.Table]:
    """A function that stores a column of a table with another type."""

    def change(table: pyarrow.Table) -> pyarrow.Table:
        return table.set_column(table.column_names.index(name), name, table[name].cast(arrow_type))

    return change


def put(index: int, value: Any) -> Callable[[list[Any]], None]:
    """A function that replaces one value; a function gets the old one."""

    def change(values: list[Any]) -> None:
        values[index] = value(values[index]) if callable(value) else value

    return change


def swap(values: Any) -> None:
    """Swap the first two values."""
    values[0], values[1] = values[1], values[0]
