"""Select the sample ids of an order, in its sequence. Orders never contain sealed samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.files import map_array
from wellread.order import metrics
from wellread.order.permutation import Kind
from wellread.order.spec import OrderSpec
from wellread.whole import unusable


@dataclass(frozen=True)
class Chosen:
    """Samples to read, each once per pass."""

    ids: NDArray[np.int64]
    passes: Kind
    """`sequential`: in the order of `ids`; `shuffle`: a new permutation each epoch."""
    source: str
    """sha256 of the metric's column or the file of ids that selected them; empty without one."""


def choose(spec: OrderSpec, corpus: Corpus, where: str, among: NDArray[np.bool_] | None = None) -> Chosen:
    """Select samples.

    Parameters
    ----------
    spec : OrderSpec
        Any order except a curriculum.
    where : str
        Beginning of error messages.
    among : bool[n_ordinary], optional
        Samples that may be chosen (default: all trainable ones but canaries).

    Raises
    ------
    UserError
        When the metric or the file cannot be used, or no sample is left.
    """
    source = ""
    if spec.kind == "file":
        listed, source = read_ids(Path(spec.path).expanduser(), corpus, where)
        ids = listed if among is None else listed[among[listed]]
    else:
        ids = np.arange(corpus.n_ordinary, dtype=np.int64) if among is None else np.flatnonzero(among)
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
    """Indices that sort `values`; equal values keep their order in both directions."""
    if not descending:
        return np.argsort(values, kind="stable")
    return len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]


def read_ids(path: Path, corpus: Corpus, where: str) -> tuple[NDArray[np.int64], str]:
    """Read a .npy file of ids of trainable samples, each at most once.

    Returns
    -------
    ids : int64[length], length >= 1
    source : str
        sha256 of the ids as little-endian int64.

    Raises
    ------
    UserError
        When the file contains anything else; the message begins with `where`.
    """
    file_ids = open_ids(path, where)
    wrong = np.flatnonzero((file_ids < 0) | (file_ids >= corpus.n_ordinary))
    if len(wrong):
        first = int(file_ids[wrong[0]])
        raise UserError(
            f"{where}: entry {wrong[0]} of {path}: {corpus.why_not(first)}; choose ids 0 … {corpus.n_ordinary - 1}"
        )
    ids = np.ascontiguousarray(file_ids, dtype="<i8")
    counts = np.bincount(ids, minlength=1)
    if counts.max() > 1:
        again = int(counts.argmax())
        places = np.flatnonzero(ids == again)
        raise UserError(
            f"{where}: {path} contains sample {again} more than once (entries {places[0]} and {places[1]}); "
            "list each id once, or repeat samples with a curriculum"
        )
    return ids, metrics.digest(ids)


def open_ids(path: Path, where: str) -> NDArray[Any]:
    """Memory-map a .npy file of integers, (length,).

    Raises
    ------
    UserError
        When it is not such a file; the message begins with `where`.
    """
    if path.exists() and (problem := unusable(path)):
        raise UserError(f"{where}: {path} {problem.replace('remove it', 'give a .npy file')}")
    try:
        array = map_array(path)
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror or error}); give a .npy file") from None
    except ValueError as error:
        raise UserError(f"{where}: {path} is not a .npy file ({' '.join(str(error).split())})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        content = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{where}: {path} contains {content}; expected a list of sample ids, integers")
    return array
