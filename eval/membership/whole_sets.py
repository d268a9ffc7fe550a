"""Tests of all samples of a group together: the order test and dataset inference, on the samples of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.membership.inference import dataset_inference
from eval.membership.order_test import order_test
from eval.separation import Floats, Ints

if TYPE_CHECKING:
    from pathlib import Path

    from eval.randomness import Randomness
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record

Row = dict[str, Any]


@dataclass(frozen=True)
class Readings:
    """The last reading of each sample before a step, int64[n] each; -1 for a sample that was not read."""

    position: Ints
    """Batch * batch size + slot."""
    epoch: Ints
    times: Ints
    """Number of readings."""
    batch_size: int
    repeats: Ints
    """How often the same phase of a curriculum had read the sample before: the record counts a curriculum as one epoch.

    Without a curriculum, how often any batch had.
    """

    @classmethod
    def of(cls, record: Record, step: int, n: int, batch_size: int, random: Randomness) -> Readings:
        """From the record; skipped batches are not readings, but count as repeats.

        Parameters
        ----------
        n
            Number of samples that may be trained on.
        random
            The phases of the order.
        """
        table = record.table(columns=["batch_id", "slot", "sample_id", "epoch", "skipped"], batches=(0, step))
        batch_id, slot, sample_id, epoch, skipped = (table.column(name).to_numpy() for name in table.column_names)
        ids = sample_id[~skipped]
        position, epochs = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
        position[ids] = (batch_id.astype(np.int64) * batch_size + slot)[~skipped]  # in order of reading: the last stays
        epochs[ids] = epoch[~skipped]
        repeats = np.zeros(n, dtype=np.int64)
        repeats[ids] = _repeats(sample_id, random.phase_of(batch_id))[~skipped]
        return cls(position, epochs, np.bincount(ids, minlength=n), batch_size, repeats)

    @property
    def batch(self) -> Ints:
        """Batch of the last reading, int64[n]."""
        return self.position // self.batch_size

    def at(self, samples: Ints) -> Readings:
        """The readings of these samples, in this order; a sample may be repeated."""
        position, epoch, times, repeats = (of[samples] for of in (self.position, self.epoch, self.times, self.repeats))
        return Readings(position, epoch, times, self.batch_size, repeats)


def _repeats(sample_id: Ints, phase: Ints) -> Ints:
    """How often the same sample is in earlier rows of the same phase, int64[rows]."""
    order = np.lexsort((phase, sample_id))  # stable: rows stay in order of reading
    starts = np.ones(order.size, dtype=bool)
    starts[1:] = (np.diff(sample_id[order]) != 0) | (np.diff(phase[order]) != 0)
    first = np.maximum.accumulate(np.where(starts, np.arange(order.size), 0))
    repeats = np.empty(order.size, dtype=np.int64)
    repeats[order] = np.arange(order.size) - first
    return repeats


def order_rows(
    scores: Floats, samples: Ints, documents: Ints, readings: Readings, random: Randomness, seed: int
) -> Iterator[Row]:
    """Rows rho, p and z of the order test for one score; where several epochs are compared, also over all of them.

    Samples without a score are left out, and those that were last read at a time that is not random. Epochs are not
    compared, nor phases of a curriculum or their passes, nor samples that were read more often with others.

    Parameters
    ----------
    scores, samples, documents
        Score, sample id and document of each unit (sample or segment), float64[n] and int64[n].
    readings
        Last reading of each unit, `Readings.at`.

    Raises
    ------
    TooFew
        When too few documents can be exchanged.
    """
    phase = random.phase_of(readings.batch)
    usable = ~np.isnan(scores) & (phase >= 0) & (readings.times > 0) & ~np.isin(samples, random.selected)
    kinds = np.stack([phase, readings.epoch, readings.times, readings.repeats])[:, usable]
    strata = np.unique(kinds, axis=1, return_inverse=True)[1].ravel()
    test = order_test(scores[usable], readings.batch[usable], strata, documents[usable], seed=seed)
    tests = {"": test}
    if random.is_one_draw and np.unique(strata).size > 1:
        overall = np.zeros_like(strata)
        tests["_overall"] = order_test(scores[usable], readings.batch[usable], overall, documents[usable], seed=seed)
    for suffix, of in tests.items():
        for metric, value in {"rho": of.rho, "p": of.p, "z": of.z}.items():
            yield {"metric": metric + suffix, "value": value, "n": of.n}


def write_transcript(path: Path, corpus: Corpus, readings: Readings) -> int:
    """Write what was read, each sample once, in order of its last reading; return the number of samples.

    Columns `index` (int64, position of the reading) and `tokens` (list of int32): the form that the published script of
    the order test takes (Kuditipudi et al. 2025).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wellread.files import replacing, require_folder

    require_folder(path)
    ids = np.argsort(readings.position, kind="stable")
    ids = ids[readings.position[ids] >= 0]
    schema = pa.schema([("index", pa.int64()), ("tokens", pa.list_(pa.int32()))])
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, ids.size, 10_000):
            part = ids[start : start + 10_000]
            tokens = [corpus.tokens(i).astype(np.int32) for i in part.tolist()]
            writer.write_table(pa.table([readings.position[part], tokens], schema=schema))
    return int(ids.size)


def inference_rows(
    values: Mapping[str, Floats], sides: tuple[Ints, Ints], documents: tuple[Ints, Ints], seed: int
) -> Iterator[Row]:
    """Rows p, median_p and significant of dataset inference on all scores.

    Parameters
    ----------
    values
        Name of each score -> its values; samples for which one is not defined are left out.
    sides
        Rows of members and of non-members in the values.
    documents
        Document of each of these rows.

    Raises
    ------
    TooFew
        When a side has too few documents.
    """
    scores = np.stack([of[np.concatenate(sides)] for of in values.values()], axis=1)
    is_member = np.arange(len(scores)) < sides[0].size
    defined = ~np.isnan(scores).any(axis=1)
    test = dataset_inference(scores[defined], is_member[defined], np.concatenate(documents)[defined], seed=seed)
    for metric, value in {"p": test.p, "median_p": test.median_p, "significant": test.significant}.items():
        yield {"metric": metric, "value": value, "n": int((defined & is_member).sum())}


def halves(rows: Ints, documents: Ints, seed: int) -> tuple[Ints, Ints]:
    """Two random halves of the documents of samples: a comparison in which there is nothing to find."""
    unique, codes = np.unique(documents, return_inverse=True)
    first = np.random.default_rng(seed).permutation(unique.size)[codes] < unique.size / 2
    return rows[first], rows[~first]
