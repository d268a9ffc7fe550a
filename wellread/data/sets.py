"""Data sets that ``--data`` names: from the registry, files or YAML descriptions, each with an optional amount."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wellread.config import CONFIGS
from wellread.data.mixture import Mixture
from wellread.data.rows import instruct
from wellread.data.sources import generated
from wellread.data.sources.archives import KINDS as ARCHIVES
from wellread.data.sources.raw import TEXT, is_megatron
from wellread.data.sources.source import MAX_DOCUMENT, Source
from wellread.data.sources.tables import SUFFIXES, UNSUPPORTED
from wellread.data.sources.text import COMPRESSED, KINDS
from wellread.errors import UserError
from wellread.shapes import mismatch
from wellread.text_io import load_yaml, refuse_foreign
from wellread.whole import read_whole, unusable

AMOUNT = re.compile(r"(.*):([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:inf|nan))", re.IGNORECASE | re.DOTALL)
TEXT_OR_NULL = (str, None)
KEYS = {
    "file": TEXT_OR_NULL,
    "hub": TEXT_OR_NULL,
    "revision": TEXT_OR_NULL,
    "hub_files": TEXT_OR_NULL,
    "schema": (str, [str], None),
    "columns": (dict, None),
    "ignore": object,  # `_ignored` says what it expects
    "template": TEXT_OR_NULL,
    "answers": str,
    "subsets": ([str], None),
    "rows": (int, None),
    "generated": (int, None),
}
"""Keys allowed in an entry of configs/data.yaml or in a user's YAML file, and the shapes of their values."""
ANSWERS = ("human", "chatgpt", "both")
YAML = (".yaml", ".yml")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files in folders of the hub and of its library that describe a data set; they contain no rows."""

UNREAD = (*SUFFIXES, *COMPRESSED, *ARCHIVES, *UNSUPPORTED)
"""Endings of files that contain data, in upper or lower case; in a folder they must be of a kind that is read."""


def registry() -> dict[str, dict[str, Any]]:
    """Data sets known by name (configs/data.yaml)."""
    import yaml

    entries: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / "data.yaml").read_text(encoding="utf-8"))
    return entries


def find(data: str, max_document: int = MAX_DOCUMENT) -> Mixture:
    """Turn ``SET,SET,…`` into sources, where SET is ``NAME[:OPTION…][@PATH][:AMOUNT]`` or ``PATH[:AMOUNT]``.

    An amount with a decimal point is a weight; without, it is a number of rows.

    Parameters
    ----------
    max_document : int, optional
        Most bytes of a document or a row.

    Raises
    ------
    UserError
        When a name is unknown, a file is missing, empty or of an unknown kind, or an amount is invalid.
    """
    parts = [data] if Path(data).exists() else data.split(",")
    sources = [_one(part, data) for part in parts]
    weighted = [source.weight is not None for source in sources]
    if len(sources) == 1 and weighted[0]:
        raise UserError(f"--data {data}: a weight needs several data sets; give rows, e.g. {sources[0].name}:1000")
    if any(weighted) and not all(weighted):
        raise UserError(f"--data {data}: give all data sets a weight (0.3) or none; :N with an integer N means N rows")
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--data {data}: two data sets are called {twice[0]}; their names must be different")
    return Mixture(tuple(replace(source, max_document=max_document) for source in sources))


_LABEL = [
    ("[^,]*@", ""),
    ("/+(,|$)", r"\1"),
    ("[^,]*/", ""),
    (":[-+.0-9e]+(,|$)", r"\1"),
    (r"\.[^,]*", ""),
    (":", "-"),
    (",", "+"),
]


def label(data: str) -> str:
    """Short form of ``--data`` for the name of a run: data sets and files without folders, suffixes and amounts."""
    for pattern, replacement in _LABEL:
        data = re.sub(pattern, replacement, data)
    return "".join(character if character.isprintable() else "-" for character in data)


def documents(data: str, max_document: int = MAX_DOCUMENT) -> Source:
    """Turn ``--data`` of pretraining into a single source of documents.

    A path is read as text, whatever its suffix. ``stories:N`` generates N synthetic stories; for other data sets ``:N``
    takes N rows.

    Raises
    ------
    UserError
        As `find`; also when there are several data sets, or one that is not raw text.
    """
    text = _without_amount(data)[0]
    path = Path(text).expanduser()
    mixture = find(data if not path.exists() or path.suffix in YAML else f"{TEXT}@{data}", max_document)
    (source, *more) = mixture.sources
    if more:
        raise UserError(f"--data {data}: pretraining reads only one data set; put the files into one folder")
    if TEXT not in source.schemas:
        raise UserError(f"--data {data}: {source.name} is not raw text; use it with wellread run finetune")
    if source.generated and (source.limit or 0) > generated.MOST:
        raise UserError(f"--data {data}: {source.limit:,} stories; choose at most {generated.MOST:,}")
    if source.generated and source.limit:
        source = replace(source, generated=source.limit, limit=None)
    if path.exists() and path.suffix not in YAML:
        source = replace(source, name=label(text))
    return source


def _without_amount(part: str) -> tuple[str, str]:
    match = None if Path(part).exists() else AMOUNT.fullmatch(part)
    return (match[1], match[2]) if match else (part, "")


def _one(part: str, data: str) -> Source:
    if not part:
        raise UserError(f"--data {data}: contains an empty name; remove the comma")
    text, amount = _without_amount(part)
    source = _source_of(text)
    if not amount:
        return source
    if re.fullmatch(r"[+-]?\d+", amount):
        if int(amount) < 1:
            raise UserError(f"--data {part}: {amount} rows; request at least 1, or remove the data set")
        return replace(source, limit=int(amount))
    if not (math.isfinite(float(amount)) and float(amount) > 0):
        raise UserError(f"--data {part}: weight {amount}; it must be greater than 0, or remove the data set")
    return replace(source, weight=float(amount))


def _source_of(text: str) -> Source:
    entries = registry()
    names, at, file = (text, "", "") if Path(text).exists() else text.partition("@")
    name, *options = names.split(":")
    if name in entries and not Path(text).exists():
        source = _of_entry(name, entries[name], CONFIGS)
        if at:
            if not file:
                raise UserError(f"--data {text}: names no file after @; write {name}@FILE")
            path = Path(file).expanduser()
            paths = _files(path, text, is_text=TEXT in source.schemas)
            source = replace(
                source,
                paths=paths,
                in_folder=path.is_dir(),
                hub=None,
                revision=None,
                hub_files=None,
                published_rows=None,
                generated=None,
            )
        elif not source.hub and not source.paths and not source.generated:
            raise UserError(f"--data {text}: needs a file; write {name}@FILE")
        return replace(_with_options(source, options, text), spelling="" if at else names)
    if at:
        raise UserError(f"--data {text}: unknown data set {name!r}; known: {', '.join(entries)}{_guess(name, entries)}")
    path = Path(text).expanduser()
    if not path.exists() and path.suffix not in (*SUFFIXES, *YAML) and "/" not in text:
        raise UserError(f"--data {text}: not a known data set ({', '.join(entries)}) or a file{_guess(text, entries)}")
    if path.suffix in YAML:
        return _of_yaml(path, text)
    return Source(
        name=path.stem if path.is_file() else path.resolve().name, paths=_files(path, text), in_folder=path.is_dir()
    )


def _guess(text: str, names: Iterable[str]) -> str:
    """The end of an error: the name that is probably meant, if any."""
    near = difflib.get_close_matches(text.partition(":")[0], names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _with_options(source: Source, options: list[str], text: str) -> Source:
    """Apply the options of ``hc3:human:open_qa``: authors and subsets."""
    if options and "hc3" not in source.schemas:
        raise UserError(f"--data {text}: {source.name} has no option {options[0]!r}; only hc3 has options")
    for option in options:
        if option in ANSWERS:
            source = replace(source, answers=option)
        elif option in instruct.HC3_SUBSETS:
            source = replace(source, subsets=(*source.subsets, option))
        else:
            names = ", ".join((*ANSWERS, *instruct.HC3_SUBSETS))
            raise UserError(f"--data {text}: {source.name} has no option {option!r}; known: {names}")
    return replace(source, name="-".join([source.name, *options]))


def _of_yaml(path: Path, text: str) -> Source:
    import yaml

    try:
        entry = load_yaml(read_whole(path))
    except OSError as error:
        raise UserError(f"--data {text}: {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--data {text}: {path} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entry, dict) or not {"file", "hub", "generated"} & entry.keys():
        raise UserError(f"--data {text}: {path} does not describe a data set; it needs file: or hub:")
    return _of_entry(path.stem, entry, path.parent)


def _of_entry(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """Build a source from an entry of the registry or of a user's YAML file; its paths are relative to `folder`."""
    where = f"--data {name}"
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), sorted(KEYS), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(KEYS))}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        if problem := mismatch(entry[key], KEYS[key], str(key)):
            raise UserError(f"{where}: {problem}")
    schemas, columns = entry.get("schema") or (), entry.get("columns") or {}
    schemas = (schemas,) if isinstance(schemas, str) else tuple(schemas)
    for schema in schemas:
        if schema not in instruct.SCHEMAS:
            raise UserError(f"{where}: unknown schema {schema!r}; known: {', '.join(instruct.SCHEMAS)}")
    if not isinstance(columns, dict) or not all(isinstance(value, str) for value in columns.values()):
        raise UserError(f"{where}: columns: expected FIELD: COLUMN, e.g. instruction: question")
    if columns:
        instruct.with_columns(columns)
    stories = entry.get("generated")
    if stories is not None and not (type(stories) is int and 0 < stories <= generated.MOST):
        raise UserError(f"{where}: generated: {stories!r}; expected a number of stories, at most {generated.MOST:,}")
    if entry.get("answers", "both") not in ANSWERS:
        raise UserError(f"{where}: answers: {entry['answers']!r}; choose one of {', '.join(ANSWERS)}")
    is_text = TEXT in schemas or "text" in columns
    file, template = entry.get("file"), entry.get("template")
    if isinstance(template, str) and template.endswith(".txt"):
        template = str(folder / Path(template).expanduser())
    return Source(
        name=name,
        schemas=(TEXT,) if is_text else schemas,
        paths=_files(folder / Path(file).expanduser(), name, is_text=is_text) if file else (),
        in_folder=bool(file) and (folder / Path(str(file)).expanduser()).is_dir(),
        hub=entry.get("hub"),
        revision=entry.get("revision"),
        hub_files=entry.get("hub_files"),
        published_rows=entry.get("rows"),
        generated=entry.get("generated"),
        columns=columns,
        ignore=_ignored(entry, where),
        template=template,
        answers=entry.get("answers", "both"),
        subsets=tuple(entry.get("subsets") or ()),
    )


def _ignored(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    names = entry.get("ignore") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: ignore: expected a list of columns, e.g. ignore: [id, score]")
    return tuple(names)


def _hidden(file: Path, folder: Path) -> bool:
    """Whether a file, or a folder between it and `folder`, is hidden, e.g. .ipynb_checkpoints, .cache, .git."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _refuse_unread(paths: Iterable[Path], suffixes: tuple[str, ...]) -> None:
    """Refuse what is in a folder of data and looks like data, but would not be read."""
    for path in paths:
        if path.is_symlink() and path.is_dir():
            raise UserError(
                f"{path}: is a link to a folder, which is not followed; name that folder, or remove the link"
            )
        if path.name.endswith(suffixes):
            if (problem := unusable(path)) and not path.is_dir():
                raise UserError(f"{path}: {problem}")
        elif path.name.lower().endswith(UNREAD) and path.is_file():
            raise UserError(f"{path}: is not a kind of file that is read ({' '.join(suffixes)}); convert or remove it")


def _refuse_partition(file: Path, folder: Path) -> None:
    """Refuse a folder of Hive: its name has the values of a column, which no file of it contains."""
    for part in file.relative_to(folder).parts[:-1]:
        if re.match(r"\w+=", part):
            raise UserError(
                f"{file.parent}: {part!r} names a column and its value, which are not read; write them into the files, "
                "or give the folder another name"
            )


def _files(path: Path, data: str, *, is_text: bool = False) -> tuple[Path, ...]:
    """The file itself, or all data files of a folder, sorted by name."""
    texts = (*(kind + compression for kind in KINDS for compression in ("", *COMPRESSED)), *ARCHIVES)
    suffixes = texts if is_text else SUFFIXES
    if is_text and is_megatron(path):
        return (path,)
    if path.is_dir():
        visible = sorted(p for p in path.rglob("*") if not _hidden(p, path) and p.name not in DESCRIPTIONS)
        if any(p.suffix == ".arrow" for p in visible):
            raise UserError(
                f"--data {data}: {path} contains .arrow files, as save_to_disk writes them; write the data set with "
                "to_parquet or to_json instead"
            )
        _refuse_unread(visible, suffixes)
        files = [p for p in visible if p.name.endswith(suffixes) and p.is_file()]
        if not files:
            raise UserError(f"--data {data}: {path} contains no data file ({' '.join(suffixes)})")
        for file in files:
            _refuse_partition(file, path)
            refuse_foreign(file)
        return tuple(files)
    if not is_text and is_megatron(path):
        raise UserError(f"--data {data}: a Megatron data set, which has tokens of text; write {TEXT}@{path}")
    if not path.is_file():
        raise UserError(f"--data {data}: {path} {'is not a file' if path.exists() else 'does not exist'}")
    if not path.name.endswith(suffixes):
        raise UserError(
            f"--data {data}: {path.suffix or 'no suffix'} is not a known kind of file ({' '.join(suffixes)})"
        )
    if path.stat().st_size == 0:
        raise UserError(f"--data {data}: {path} is empty")
    refuse_foreign(path)
    return (path,)
