"""``wellread export RUN --format bergson``: a run as the SOURCE pipeline of bergson reads it, with one YAML file.

SOURCE (Bae et al. 2024) attributes a loss to training samples along the trajectory of a run. It divides the run into
segments; each needs checkpoints, its mean learning rate and its number of steps. bergson is EleutherAI's library; it
reads samples that are already tokenized: columns `input_ids`, `labels` (-100 where there is no loss) and `length`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.cli import parse, plain_parser
from wellread.errors import UserError
from wellread.files import new_directory, read_json
from wellread.named import named_checkpoint
from wellread.units import plural

if TYPE_CHECKING:
    import pyarrow as pa

    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.record.opened import Run

Ints = NDArray[np.int64]

FORMAT = "bergson"
DESCRIPTION = (
    "Write what bergson's SOURCE pipeline needs to attribute a run: checkpoints, rates, data in reading order."
)
EXAMPLES = """examples:
  {prog} runs/tiny-sample --format bergson --out attribution
  {prog} runs/tiny-sample@step-200 --format bergson --out attribution     until this checkpoint
  bergson attribution/bergson.yaml                                        where bergson is installed"""
SEGMENTS = 3
"""Segments of the run, bergson's default; each has the same number of checkpoints."""
QUERIES = 1000
"""Most sealed samples in the query, drawn with seed 0."""
NO_LOSS = -100
"""Label of a token without loss."""
ROWS = 1024
"""Samples that are written at once."""


@dataclass(frozen=True)
class Segment:
    """A part of a run."""

    checkpoints: Sequence[Checkpoint]
    rate: float
    """Mean learning rate over its steps."""
    steps: int
    """Optimizer steps; skipped batches have none."""


def main(argv: list[str], prog: str = "wellread export") -> int:
    """Export a run; return the exit code."""
    parser = plain_parser(prog, DESCRIPTION, EXAMPLES.format(prog=prog))
    parser.add_argument("run", metavar="RUN[@step-N]", help="Run directory, and its last checkpoint (default: newest).")
    parser.add_argument("--format", required=True, choices=[FORMAT], help="bergson.")
    parser.add_argument("--out", required=True, metavar="DIR", help="New directory.")
    options = parse(parser, argv)
    for line in export(named_checkpoint(options.run), Path(options.out)):
        print(line)
    return 0


def export(last: Checkpoint, out: Path) -> list[str]:
    """Write the run of a checkpoint until this checkpoint into a new directory; return what to say about it.

    Raises
    ------
    UserError
        When the run cannot be attributed, its record is not complete, or `out` already exists.
    """
    import pyarrow as pa

    from wellread.record.opened import Run
    from wellread.results import write_table

    run = Run.open(last.path.parent.parent)
    if run.corpus.packed:
        raise UserError(f"{run.path}: its samples are packed, but bergson reads a sample as one text; train without it")
    if run.corpus.n == run.corpus.n_trainable:
        raise UserError(f"{run.path}: no sealed samples, whose loss is attributed; train with --holdout above 0")
    readings = _readings(run, last.step)
    segments = segments_of(run, last, readings)
    rows = _rows(readings)
    query = np.sort(np.random.default_rng(0).permutation(np.arange(run.corpus.n_trainable, run.corpus.n))[:QUERIES])
    with new_directory(out) as directory:
        _write_samples(directory / "train" / "data.parquet", run.corpus, rows)
        _write_samples(directory / "query" / "data.parquet", run.corpus, {"sample_id": query})
        write_table(directory / "readings.parquet", pa.table(readings))
        (directory / "bergson.yaml").write_text(_yaml(run, segments, out.absolute()), encoding="utf-8")
    used = [each.step for segment in segments for each in segment.checkpoints]
    left_out = [each.step for each in run.checkpoints if 0 < each.step <= last.step and each.step not in used]
    return [
        f"{out}: {plural(len(rows['sample_id']), 'sample')} in reading order; "
        f"query: {plural(query.size, 'sealed sample')}",
        f"{plural(len(segments), 'segment')} with the checkpoints {', '.join(map(str, used))}; "
        f"left out: {', '.join(map(str, left_out)) or 'none'}",
        f"where bergson is installed: bergson {out / 'bergson.yaml'}",
    ]


def segments_of(run: Run, last: Checkpoint, readings: dict[str, Ints]) -> list[Segment]:
    """The run until a checkpoint in segments of equally many checkpoints; the earliest that are too many are left out.

    A segment begins after the last checkpoint of the one before it, the first at step 0.

    Raises
    ------
    UserError
        When there is no checkpoint after step 0, or one does not match its manifest.
    """
    from wellread.planning.rate import planned_rate

    checkpoints = [each for each in run.checkpoints if 0 < each.step <= last.step]
    if not checkpoints:
        raise UserError(f"{run.path}: no checkpoint after step 0; give a run that has trained")
    number = min(SEGMENTS, len(checkpoints))
    checkpoints = checkpoints[len(checkpoints) % number :]
    for checkpoint in checkpoints:
        if damage := checkpoint.damage():
            raise UserError(f"{damage}; move it away, or export RUN@step-N")
    per_segment, learned = len(checkpoints) // number, np.unique(readings["batch"])
    segments, start = [], 0
    for i in range(number):
        of = checkpoints[i * per_segment : (i + 1) * per_segment]
        batches = learned[(learned >= start) & (learned < of[-1].step)].tolist()
        if not batches:
            raise UserError(f"{run.path}: all batches before step {of[-1].step} were skipped; nothing was learned")
        rates = [planned_rate(batch, run.plan, run.config.optim) for batch in batches]
        segments.append(Segment(of, float(np.mean(rates)), len(batches)))
        start = of[-1].step
    return segments


def _readings(run: Run, step: int) -> dict[str, Ints]:
    """Batch, slot and sample of each reading before a step that was learned from, by time."""
    table = run.record.table(["batch_id", "slot", "sample_id", "skipped"], (0, step))
    batch, slot, sample_id, skipped = (table.column(name).to_numpy() for name in table.column_names)
    order = np.lexsort((slot, batch))
    order = order[~skipped[order]]
    columns = {"batch": batch, "slot": slot, "sample_id": sample_id}
    return {name: values[order].astype(np.int64) for name, values in columns.items()}


def _rows(readings: dict[str, Ints]) -> dict[str, Ints]:
    """Each sample that was read, once, by its first reading: id, batch of that reading, number of readings."""
    ids, first, times = np.unique(readings["sample_id"], return_index=True, return_counts=True)
    order = np.argsort(first)
    return {"sample_id": ids[order], "batch": readings["batch"][first[order]], "times": times[order]}


def _write_samples(file: Path, corpus: Corpus, rows: dict[str, Ints]) -> None:
    """Write samples, tokenized as they were trained on, a part of them at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wellread.results import WRITING

    lists = ("input_ids", "labels")
    schema = pa.schema(
        [*((name, pa.int64()) for name in (*rows, "length")), *((n, pa.list_(pa.int64())) for n in lists)]
    )
    file.parent.mkdir()
    with pq.ParquetWriter(file, schema, **WRITING) as writer:
        for table in _tables(corpus, rows, schema):
            writer.write_table(table)


def _tables(corpus: Corpus, rows: dict[str, Ints], schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    for start in range(0, len(rows["sample_id"]), ROWS):
        part: dict[str, Any] = {name: values[start : start + ROWS] for name, values in rows.items()}
        ids = part["sample_id"].tolist()
        tokens = [corpus.tokens(i).astype(np.int64) for i in ids]
        part["length"] = [len(each) for each in tokens]
        part["input_ids"] = tokens
        part["labels"] = [np.where(corpus.targets(i), each, NO_LOSS) for i, each in zip(ids, tokens, strict=True)]
        yield pa.table(part, schema=schema)


def _yaml(run: Run, segments: Sequence[Segment], out: Path) -> str:
    """The file that bergson runs; all its paths are absolute."""
    import yaml

    checkpoints = [str(each.model.absolute()) for segment in segments for each in segment.checkpoints]
    settings = {
        "index_cfg": {
            "run_path": str(out / "source"),
            "model": checkpoints[-1],
            "precision": "fp32",
            "token_batch_size": _positions(run, Path(checkpoints[-1])),
            "drop_columns": False,
            "data": _data(out / "train"),
        },
        "hessian_cfg": {"method": "kfac", "hessian_dtype": "fp32", "ev_correction": True},
        "approx_unrolling_cfg": {
            "checkpoints": checkpoints,
            "segments": len(segments),
            "lr_list": [segment.rate for segment in segments],
            "step_size_list": [segment.steps for segment in segments],
            "query": _data(out / "query"),  # of its mean gradient, bergson's default
        },
    }
    return yaml.safe_dump({"steps": [{"approxunrolling": settings}]}, sort_keys=False, allow_unicode=True)


def _data(folder: Path) -> dict[str, Any]:
    """Samples as they are: tokenized already, and not cut into chunks."""
    return {"dataset": str(folder), "split": "train", "chunk_length": 0}


def _positions(run: Run, model: Path) -> int:
    """Tokens of a batch: as many as the model can read, or the longest sample if its configuration states no limit."""
    from wellread.models.families import KEYS

    file = model / "config.json"
    config = read_json(file, {}) if file.is_file() else {}
    limits = [config[key] for key in KEYS["positions"] if config.get(key)]
    return int(limits[0]) if limits else run.corpus.longest
