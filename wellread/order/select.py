"""Sample ids that an order chooses, in its sequence; the sealed holdout is out of every order's reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.order import metrics
from wellread.order.permutation import Kind
from wellread.order.spec import OrderSpec


@dataclass(frozen=True)
class Chosen:
    """Samples to read, each once, and how to go through them."""

    ids: NDArray[np.int64]
    passes: Kind
    """`sequential`: as they stand here; `shuffle`: a new permutation each epoch."""
    source: str
    """sha256 of what decided: a metric's column or a file of ids; empty where neither did."""


def choose(spec: OrderSpec, corpus: Corpus, where: str, among: NDArray[np.bool_] | None = None) -> Chosen:
    """Choose samples.

    Parameters
    ----------
    spec : OrderSpec
        Any but a curriculum.
    where : str
        What an error begins with.
    among : bool[n_trainable], optional
        Samples that may be chosen (default: all trainable ones).

    Raises
    ------
    UserError
        When the metric or the file cannot be used, or no sample is left.
    """
    source = ""
    if spec.kind == "file":
        given, source = read_ids(Path(spec.path).expanduser(), corpus, where)
        ids = given if among is None else given[among[given]]
    else:
        ids = np.arange(corpus.n_trainable, dtype=np.int64) if among is None else np.flatnonzero(among)
    if spec.condition:
        values = metrics.column(corpus, spec.condition.metric, where)
        ids, source = ids[spec.condition.holds(values[ids])], metrics.digest(values)
    if spec.metric:
        values = metrics.column(corpus, spec.metric, where)
        ids, source = ids[_stable(values[ids], spec.descending)], metrics.digest(values)
    if not len(ids):
        raise UserError(f"{where}: no trainable sample is left to read")
    return Chosen(ids, "shuffle" if spec.kind in ("shuffle", "filter") else "sequential", source)


def _stable(values: NDArray[Any], descending: bool) -> NDArray[np.int64]:
    """Places of `values` in sorted order; equal ones stay as they stand, whichever the direction."""
    if not descending:
        return np.argsort(values, kind="stable")
    return len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]


def read_ids(path: Path, corpus: Corpus, where: str) -> tuple[NDArray[np.int64], str]:
    """Read a .npy file of trainable samples' ids, each at most once.

    Returns
    -------
    ids : int64[length], length >= 1
    source : str
        sha256 of the ids as little-endian int64.

    Raises
    ------
    UserError
        When the file holds anything else; begins with `where`.
    """
    found = open_ids(path, where)
    wrong = np.flatnonzero((found < 0) | (found >= corpus.n_trainable))
    if len(wrong):
        first = int(found[wrong[0]])
        sealed = f"sample {first} is sealed" if 0 <= first < corpus.n else f"there is no sample {first}"
        raise UserError(f"{where}: entry {wrong[0]} of {path}: {sealed}; choose ids 0 … {corpus.n_trainable - 1}")
    ids = np.ascontiguousarray(found, dtype="<i8")
    counts = np.bincount(ids, minlength=1)
    if counts.max() > 1:
        again = int(counts.argmax())
        places = np.flatnonzero(ids == again)
        raise UserError(
            f"{where}: {path} holds sample {again} more than once (entries {places[0]} and {places[1]}); "
            "give each id once, or repeat it by a curriculum"
        )
    return ids, metrics.digest(ids)


def open_ids(path: Path, where: str) -> NDArray[Any]:
    """Map a .npy file of integers into memory, (length,); ValueError when it is none, which begins with `where`."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror or error}); name a .npy file") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{where}: {path} is no .npy file ({' '.join(str(error).split())})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        held = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "an archive"
        raise UserError(f"{where}: {path} holds {held}; expected a list of integers, one sample id each")
    return found
