"""Perplexity of what a run has read under a stated model: log-likelihoods of its samples, kept per model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.saturation.measured import read_samples
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.separation import Floats, Ints
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.record.reader import Record
    from wellread.run import RunDirectory

FLAG = "--perplexity"
NAME = "perplexity_under_"
"""Beginning of the name of the input metric; the name of the model follows."""


def measure(run: RunDirectory, corpus: Corpus, record: Record, model: str, reporter: Reporter) -> None:
    """Score every sample that a run has read under a model, and keep its log-likelihood.

    Token columns are kept in `eval/tokens/` by the hash of the model's weights, so that an interrupted call continues,
    and `wellread membership --reference MODEL` needs no second pass. Packed samples are scored by segments.

    Raises
    ------
    UserError
        When there is no such model, it has another vocabulary or too few positions, or a likelihood is not finite.
    """
    import pyarrow as pa

    from eval.kept import kept_scores, key_of_model, tokens_under
    from eval.membership.references import check_reference, model_named
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.results import write_table

    directory = model_named(model, FLAG)
    check_reference(directory, model, Tokenizer.load(corpus.tokenizer), corpus.longest, FLAG)
    ids = read_samples(record, corpus.n_trainable)
    units, unit_ids, sample_of = _units(corpus, ids)
    reporter.note(f"{FLAG} {model}: scoring the {ids.size:,} samples that {run.path} has read")
    scores = kept_scores(tokens_under(run, directory, units, unit_ids, reporter), units, unit_ids)
    totals = np.bincount(sample_of, weights=scores.log_likelihood, minlength=corpus.n_trainable)[ids]
    if not np.isfinite(totals).all():
        bad = ids[np.argmin(np.isfinite(totals))]
        raise UserError(f"{FLAG} {model}: the likelihood of sample {bad} is not finite; choose another model")
    key = key_of_model(run, directory)
    table = pa.table({"sample_id": ids, "log_likelihood": totals})
    about = {"model": _label(model), "key": key, "corpus": corpus.hash}
    write_table(_folder(run) / f"perplexity-{key[:12]}.parquet", table.replace_schema_metadata(about))


def size(run: RunDirectory) -> int:
    """Number of samples, or segments of packed ones, that `measure` scores."""
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record

    corpus = Corpus.open(run.corpus)
    return int(_units(corpus, read_samples(Record.open(run.record), corpus.n_trainable))[1].size)


def likelihoods(run: RunDirectory, corpus: Corpus) -> dict[str, Floats]:
    """Log-likelihoods under all models that were measured.

    Returns
    -------
    dict
        `perplexity_under_MODEL` -> sum of log p over the targets of each trainable sample, nats, float64[n_trainable];
        NaN for samples that were not read when they were measured.
    """
    from wellread.results import read_table

    values: dict[str, Floats] = {}
    for path in sorted(_folder(run).glob("perplexity-*.parquet")):
        table = read_table(path)
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if about.get("corpus") == corpus.hash:
            name = f"{NAME}{about['model']}"
            column = values.setdefault(f"{name}-{about['key'][:6]}" if name in values else name, _missing(corpus))
            column[table.column("sample_id").to_numpy()] = table.column("log_likelihood").to_numpy()
    return values


def _units(corpus: Corpus, ids: Ints) -> tuple[Corpus | Segments, Ints, Ints]:
    """What is scored for samples: they themselves, or their segments; ids of it, and the sample of each."""
    if not corpus.packed:
        return corpus, ids, ids
    from wellread.corpus.segments import Segments

    segments = Segments(corpus)
    sample_of = segments.sample_of(np.arange(segments.n_trainable))
    unit_ids = np.flatnonzero(np.isin(sample_of, ids))
    return segments, unit_ids, sample_of[unit_ids]


def _label(model: str) -> str:
    """A short name of a model that may be in the name of a file: the end of its path."""
    return re.sub(r"[^\w.@-]+", "-", Path(model).name)


def _missing(corpus: Corpus) -> Floats:
    return np.full(corpus.n_trainable, np.nan)


def _folder(run: RunDirectory) -> Path:
    return run.eval / "saturation"
