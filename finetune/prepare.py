"""Compile the corpus of a fine-tuning run: rows -> template -> tokens and loss mask -> sealed, hashed corpus."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from wellread.config import RunConfig
from wellread.data import seal, sources, tokenizer
from wellread.data.compile import Sample, Shard, building, merge, write_shards
from wellread.data.corpus import Corpus
from wellread.data.instruct import (
    SCHEMAS,
    Example,
    Schema,
    corpus_directory,
    corpus_settings,
    example,
    recognise,
)
from wellread.models.registry import ModelSpec, find, local_directory
from wellread.plan import resolve

ROWS_PER_SHARD = 2000
LISTED_BAD_ROWS = 20


def prepare(config: RunConfig) -> Path:
    """Compile the corpus of `config`, or find it compiled; return its directory.

    Raises
    ------
    ValueError
        When the data, the model or its tokenizer cannot be used, or too many rows are broken.
    """
    spec = find(config.model)
    config = resolve(config, spec)
    source = sources.find(config.data or "")
    tokens = tokenizer.identify(None if spec.fresh else local_directory(spec, weights=False), spec.vocab)
    target = corpus_directory(config, source, tokens)
    with building(target) as build:
        if build is None:
            print(f"corpus {target}: already compiled", flush=True)
            return target
        schema = SCHEMAS[source.schema] if source.schema else _recognised(source)
        rows, bad = _check_rows(source, schema, config.max_bad_rows)
        backend = _tokenizer(spec, source, schema, build)
        print(f"compiling {rows:,} rows of {source.name} into {target}", flush=True)
        _write(build, source, schema, backend, config, rows)
        merge(
            build,
            source=source.name,
            vocab_size=spec.vocab,
            settings=corpus_settings(config, source, tokens),
            extra={
                "kind": "instruction",
                "source": {
                    "name": source.name,
                    "schema": schema.name,
                    "rows": rows,
                    "sha256": sources.fingerprint(source),
                },
                "tokenizer": {
                    "size": backend.size,
                    "eos": backend.eos,
                    "sha256": tokenizer.fingerprint(build / "tokenizer"),
                },
                "bad_rows": bad,
            },
        )
    _warn_unsealed(target, config)
    return target


def _warn_unsealed(target: Path, config: RunConfig) -> None:
    counts = Corpus.open(target).meta["counts"]
    if counts["sealed"] == 0 and config.holdout > 0:
        print(
            f"warning: none of the {counts['samples']:,} samples is sealed (--holdout {config.holdout:g}): "
            "what the model has read cannot be told from what it has not",
            file=sys.stderr,
        )


def _recognised(source: sources.Source) -> Schema:
    columns = {c for row in itertools.islice(sources.rows(source), 100) if row.fields for c in row.fields}
    if not columns:
        return SCHEMAS["dolly"]  # any will do: the rows are broken or none, and the check of rows says which
    return recognise(columns, str(source.path or source.hub))


def _examples(source: sources.Source, schema: Schema) -> Iterator[tuple[int, Example | str]]:
    """Row number and its texts, or what is wrong with it."""
    for row in sources.rows(source):
        yield row.number, (example(row.fields, schema) if row.fields is not None else f"{row.error}")


def _check_rows(source: sources.Source, schema: Schema, allowed: int) -> tuple[int, list[str]]:
    """Read every row once; return how many there are, and a line for each broken one."""
    count, bad = 0, []
    for number, found in _examples(source, schema):
        count += 1
        if isinstance(found, str):
            bad.append(f"{source.path or source.hub} row {number}: {found}")
    if count == 0:
        raise ValueError(f"{source.path or source.hub}: holds no rows")
    if len(bad) > allowed:
        listed = "; ".join(bad[:LISTED_BAD_ROWS]) + (
            f"; and {len(bad) - LISTED_BAD_ROWS} more" * (len(bad) > LISTED_BAD_ROWS)
        )
        raise ValueError(
            f"{len(bad)} broken row{'s' * (len(bad) > 1)}, {allowed} allowed: {listed}; "
            f"mend them, or pass over them with --max_bad_rows {len(bad)}"
        )
    for line in bad:
        print(f"passing over {line}", file=sys.stderr)
    return count, bad


def _tokenizer(spec: ModelSpec, source: sources.Source, schema: Schema, build: Path) -> tokenizer.Tokenizer:
    """Put the tokenizer's files into the corpus; train one where the model has none."""
    directory = build / "tokenizer"
    if spec.fresh and not (directory / "tokenizer.json").exists():
        found = (text for _, text in _examples(source, schema) if isinstance(text, Example))
        tokenizer.train_bpe((f"{e.prompt}{e.response}" for e in found), spec.vocab, directory, spec.positions)
    elif not spec.fresh:
        tokenizer.copy_files(local_directory(spec, weights=False), directory)
    backend = tokenizer.Tokenizer.load(directory)
    if backend.size > spec.vocab:
        raise ValueError(
            f"--model {spec.name}: its tokenizer has {backend.size:,} tokens but its embedding {spec.vocab:,} rows; "
            "they do not belong together"
        )
    return backend


def _write(
    build: Path, source: sources.Source, schema: Schema, backend: tokenizer.Tokenizer, config: RunConfig, rows: int
) -> None:
    """Tokenise stretch by stretch, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    found = _examples(source, schema)
    consumed = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("tokenising", total=rows)

        def make(index: int) -> Shard:
            nonlocal consumed
            skipped = index * ROWS_PER_SHARD - consumed  # shards that an interrupted build left behind
            stretch = list(itertools.islice(found, skipped, skipped + ROWS_PER_SHARD))
            consumed = (index + 1) * ROWS_PER_SHARD
            return tokenise(stretch, backend, config)

        count = -(-rows // ROWS_PER_SHARD)
        write_shards(build, count, make, lambda done: bar.update(task, completed=min(rows, done * ROWS_PER_SHARD)))


def tokenise(stretch: list[tuple[int, Example | str]], backend: tokenizer.Tokenizer, config: RunConfig) -> Shard:
    """Turn rows into samples: prompt, response, end of sequence; loss on the last two.

    A sample longer than ``--seq_len`` loses the end of its response (counted as ``response_cut``). A row without
    response, or whose prompt fills the window, has nothing to learn from: left out and counted.
    """
    seq_len = config.seq_len or 0
    shard = Shard([], Counter())
    good = []
    for number, found in stretch:
        if isinstance(found, str):
            shard.counts["dropped_broken"] += 1
        elif not found.response:
            shard.counts["dropped_empty_response"] += 1
        else:
            good.append((number, found))
    prompts = backend.prompts([found.prompt for _, found in good]) if good else []
    responses = backend.continuations([found.response for _, found in good]) if good else []
    for (number, found), prompt, response in zip(good, prompts, responses, strict=True):
        if len(prompt) >= seq_len:
            shard.counts["dropped_prompt_fills_window"] += 1
            continue
        tokens = [*prompt, *response, backend.eos]
        if len(tokens) > seq_len:
            shard.counts["response_cut"] += 1
            tokens = tokens[:seq_len]
        document = seal.document_id(f"{found.prompt}\x00{found.response}")
        sample = Sample(
            tokens=tokens,
            spans=[(max(1, len(prompt)), len(tokens))],
            document=document,
            sealed=seal.is_sealed(document, config.holdout, config.holdout_seed),
            row=number,
            category=found.category,
        )
        shard.samples.append(sample)
    return shard
