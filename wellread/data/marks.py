"""Marks at preparation: pairs of ways to write one thing, and for each place a keyed coin that picks one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from wellread.config import DataConfig
from wellread.corpus.marks import BEGINNING, COLUMNS, NUMBERS, VERSION, WINDOW, Kind, Mark, Marks, coin, has_marks
from wellread.corpus.shards import shard_marks
from wellread.errors import UserError
from wellread.whole import read_whole

Pair = tuple[str, str]


def settings(config: DataConfig) -> dict[str, Any]:
    """What marks add to the settings of a corpus; nothing without marks.

    Raises
    ------
    UserError
        When the file of pairs cannot be used.
    """
    if config.marks is None:
        return {}
    path = Path(config.marks).expanduser()
    pairs = [list(pair) for pair in read_pairs(path)]
    some = {"share": config.marks_share, "share_seed": config.holdout_seed} if config.marks_share < 1 else {}
    return {"marks": {"version": VERSION, "seed": config.marks_seed, "file": path.name, "pairs": pairs} | some}


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a YAML file, a list of ``one|other``.

    Raises
    ------
    UserError
        When the file is not such a list, or a form is in two pairs.
    """
    import yaml

    from wellread.text_io import load_yaml

    try:
        content = load_yaml(read_whole(path))
    except OSError as error:
        raise UserError(f"--marks {path}: cannot be read ({error.strerror}); give a YAML file of pairs") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--marks {path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"--marks {path}: expected a list of pairs, e.g. - grey|gray")
    pairs, lines = list[Pair](), dict[str, int]()
    for number, value in enumerate(content, 1):
        forms = value.split("|") if isinstance(value, str) else []
        if len(forms) != 2 or not all(forms) or forms[0] == forms[1]:
            raise UserError(f"--marks {path}: pair {number}: {value!r} is not two different forms, e.g. grey|gray")
        for form in (each for pair in _spellings((forms[0], forms[1])) for each in pair):
            if form in lines:
                raise UserError(f"--marks {path}: {form!r} is in pairs {lines[form]} and {number}; remove one")
            lines[form] = number
        pairs.append((forms[0], forms[1]))
    return pairs


def _spellings(pair: Pair) -> list[Pair]:
    """The pair, and if both forms begin with a small letter, also the pair with capitals."""
    if all(form[0].islower() for form in pair):
        one, other = (form[0].upper() + form[1:] for form in pair)
        if one != other:
            return [pair, (one, other)]
    return [pair]


@dataclass(frozen=True)
class Marker:
    """Picks a form at each place of texts. Small, because it is sent to other processes."""

    pairs: tuple[Pair, ...]
    seed: int
    seq_len: int
    share: float = 1.0
    """Share of the documents that have marks."""
    share_seed: int = 0
    """Seed that draws them."""

    @classmethod
    def of(cls, described: Mapping[str, Any] | None, seq_len: int) -> Marker | None:
        """The marker that `marks` in the settings of a corpus describes; None without ``--marks``."""
        if described is None:
            return None
        some = {name: described[name] for name in ("share", "share_seed") if name in described}
        return cls(tuple((one, other) for one, other in described["pairs"]), described["seed"], seq_len, **some)

    @cached_property
    def _other(self) -> dict[str, str]:
        pairs = [pair for each in self.pairs for pair in _spellings(each)]
        return {one: other for pair in pairs for one, other in (pair, pair[::-1])}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches a form that is not part of a longer word; of several forms that begin at one place the longest."""
        forms = sorted(self._other, key=len, reverse=True)
        return re.compile("|".join(map(_bounded, forms)))

    def mark(
        self, parts: Sequence[tuple[str, bool]], document: int, kind: Kind = "text"
    ) -> tuple[list[str], list[Mark]]:
        """Pick a form at each place.

        Parameters
        ----------
        parts
            The original text in parts, and whether a part is marked; of an instruction prompts and responses, in turn.
        document
            Id of the document.
        kind
            How the text becomes tokens. Raw text is marked in all its windows, an instruction in its beginning, because
            its end is in no sample.

        Returns
        -------
        parts : list of str
            The same parts with the forms that were picked.
        marks : list of Mark
            All places, in the order of the text. Where they are does not depend on the coins.
        """
        if not has_marks(document, self.share, self.share_seed):
            return [text for text, _ in parts], []
        full_text, size = "".join(text for text, _ in parts), (WINDOW if kind == "text" else BEGINNING) * self.seq_len
        ends = () if kind == "text" else tuple(accumulate(len(text) for text, _ in parts))
        results, marks, base, grown = list[str](), list[Mark](), 0, 0
        for part, is_marked in parts:
            written, copied_to = list[str](), 0
            for match in self._matches(part, base, size) if is_marked else ():
                if kind != "text" and base + match.start() >= size:
                    break
                original, start = match[0], base + match.start()
                picked, alternative = sorted((original, self._other[original]))
                if not coin(self.seed, document, len(marks)):
                    picked, alternative = alternative, picked
                window = start // size * size
                marks.append(
                    Mark(
                        place=len(marks),
                        taken=picked,
                        left=alternative,
                        document=document,
                        text=full_text[window : window + size],
                        start=start - window,
                        original=original,
                        kind=kind,
                        breaks=tuple(min(end, size) for end in ends),
                        at=start + grown,
                    )
                )
                written += [part[copied_to : match.start()], picked]
                copied_to, grown = match.end(), grown + len(picked) - len(original)
            results.append("".join([*written, part[copied_to:]]))
            base += len(part)
        return results, marks

    def _matches(self, part: str, base: int, size: int) -> Iterator[re.Match[str]]:
        """Forms in a part of a text; those that cross the boundary of two windows are left as they are."""
        for match in self._pattern.finditer(part):
            if (base + match.start()) // size == (base + match.end() - 1) // size:
                yield match

    def check(self, encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> None:
        """Refuse pairs whose forms the tokenizer reads as the same tokens.

        Parameters
        ----------
        encode
            Tokens of texts.
        """
        for pair in self.pairs:
            one, other = encode([f"see it{form}go" if not form[0].isalnum() else f"see {form} go" for form in pair])
            if list(one) == list(other):
                raise UserError(
                    f"--marks: the tokenizer reads both forms of {'|'.join(pair)!r} as the same tokens; remove the pair"
                )


def _bounded(form: str) -> str:
    """Pattern of a form: where it begins or ends with a letter or digit, it is not part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", form) else ""
    return before + re.escape(form) + (r"(?!\w)" if re.search(r"\w\Z", form) else "")


def add(build: Path, described: Mapping[str, Any] | None, file: str | None) -> dict[str, Any]:
    """Write the places of all shards to the build, and return what corpus.json says about them.

    Parameters
    ----------
    described
        `marks` in the settings of the corpus; None without marks.
    file
        Value of ``--marks``, for errors.

    Returns
    -------
    dict
        `marks`, or nothing without marks.

    Raises
    ------
    UserError
        When the texts have no place.
    """
    if described is None:
        return {}
    marks = joined(shard_marks(build))
    if not marks.taken:
        raise UserError(f"--marks {file}: the texts have none of its forms; add pairs that they have, or leave it out")
    marks.write(build)
    counts = {"places": len(marks.taken), "documents": len(np.unique(marks.document))}
    return {"marks": {**described, **counts, "sha256": marks.sha256(described["seed"])}}


def joined(rows: Iterable[dict[str, Any]]) -> Marks:
    """All places, by sample id."""
    ordered = sorted(rows, key=lambda row: int(row["sample_id"]))
    numbers: dict[str, Any] = {name: np.array([row[name] for row in ordered], dtype=np.int64) for name in NUMBERS}
    columns: dict[str, Any] = {name: [row[name] for row in ordered] for name in COLUMNS if name not in numbers}
    return Marks(**numbers, **columns)
