"""Settings of a corpus: what the reading of files depends on in addition to bytes; usual readings add nothing."""

from __future__ import annotations

from typing import Any

from wellread.data.rows.instruct import HC3_SUBSETS, Schema, extra_columns
from wellread.data.rows.templates import Template
from wellread.data.sources import archives, raw, text
from wellread.data.sources.source import Source

KEYS = ("kinds", "subsets_of_files", "hub_files", "archives", "plain_text", "fields_of_chats")
"""All keys of `settings`; a data set of a corpus from before them has none of them."""
FIELDS_VERSION = 2
"""Raise it when columns next to messages give other values for the fields of a template; in 1, they were empty."""


def settings(source: Source, schema: Schema, template: Template | None = None) -> dict[str, Any]:
    """What a data set adds to its settings in a corpus, next to the hash of the bytes of its files."""
    kinds = [text.kind(path) for path in source.paths]
    subsets = [path.stem if path.stem in HC3_SUBSETS else "" for path in source.paths] if schema.name == "hc3" else []
    fields = {"category", *extra_columns(schema)} if "messages" in schema.columns else set[str]()
    return {
        # Any bytes can be read as plain text; all other kinds refuse the bytes of another kind.
        **({"kinds": _short(kinds), "plain_text": raw.PLAIN_VERSION} if text.PLAIN in kinds else {}),
        **({"subsets_of_files": _short(subsets)} if any(subsets) else {}),
        **({"archives": archives.VERSION} if {".zip", ".tar.gz"} & {*kinds} else {}),
        **({"fields_of_chats": FIELDS_VERSION} if template and fields & template.fields else {}),
        # The name of a data set of the registry says which files these are.
        **({"hub_files": source.hub_files} if source.hub_files and not source.spelling else {}),
    }


def _short(values: list[str]) -> list[str]:
    """One value per file, in their order, or the only one that all files have."""
    return values if len({*values}) > 1 else values[:1]
