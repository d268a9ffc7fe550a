"""Report of a run, `report/index.html`, with what it read, its checkpoints and results of evaluations. Run with

    wellread report runs/NAME

The page is self-contained: images are embedded, there are no scripts, and all text from the run is escaped. Each
evaluation of `eval/registry.py` adds its section.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.registry import evaluations
from eval.report.record_summary import RecordSummary
from eval.section import Column, Picture, Section

if TYPE_CHECKING:
    from jinja2 import Environment

    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.run import RunDirectory

LOSS_WINDOW = 10
"""Number of batches before a checkpoint over which its training loss is averaged."""


def write(run: RunDirectory) -> Path:
    """Write the report of a run and return its path.

    Raises
    ------
    UserError
        When the run has no record or no corpus, or a result table cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from wellread.files import write_atomic

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    sections = sections_of(run)
    parts = [_part(environment, run, name, section) for name, section in sections.items()]
    evaluated = [section for section in sections.values() if section]
    page = environment.get_template("page.html.j2").render(_content(run, evaluated), parts=parts)
    path = run.report / "index.html"
    run.refuse_links()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


def cell(value: object) -> str:
    """A value of a table as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sections_of(run: RunDirectory) -> dict[str, Section | None]:
    """Name of each evaluation, in the order of the registry -> its section; None when it was not evaluated."""
    return {kind.name: kind.section(run, kind.stored(run)) for kind in evaluations()}


def _part(environment: Environment, run: RunDirectory, name: str, section: Section | None) -> dict[str, Any]:
    """Variables of the template for a section."""
    command = f"wellread {name} {shlex.quote(str(run.path))}"
    if section is None:
        return {"name": name, "heading": name.capitalize(), "command": command}
    text = environment.from_string(section.template).render(section.values)
    return {"name": name, "section": section, "heading": section.heading, "text": text, "command": None}


def _content(run: RunDirectory, sections: list[Section]) -> dict[str, Any]:
    """All variables of the template, except the rendered sections."""
    from wellread.checkpoint import list_checkpoints
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record

    corpus, record, checkpoints = Corpus.open(run.corpus), Record.open(run.record), list_checkpoints(run.checkpoints)
    read = RecordSummary.of(record, corpus.n_trainable)
    columns = [column for section in sections for column in section.columns]
    return {
        "name": run.name,
        "lead": _lead(run, record, checkpoints),
        "summary": _summary(run, record, read, checkpoints),
        "counts": {name.replace("_", " "): count for name, count in corpus.meta["counts"].items()},
        "pictures": [
            *_losses(checkpoints, read),
            _lengths(corpus),
        ],
        "columns": columns,
        "checkpoints": [_row(checkpoint, read, columns) for checkpoint in checkpoints],
        "loss_window": LOSS_WINDOW,
        "commands": [*(command for section in sections for command in section.commands), *_commands(run, checkpoints)],
        "attempts": run.manifest()["attempts"],
    }


def _lead(run: RunDirectory, record: Record, checkpoints: list[Checkpoint]) -> str:
    config, tokens = run.config(), checkpoints[-1].tokens if checkpoints else 0
    read = f"{record.batches:,} batches read, {tokens:,} tokens at the last checkpoint"
    return f"{config.model.name} on {config.data.name}: {read}."


def _summary(run: RunDirectory, record: Record, read: RecordSummary, checkpoints: list[Checkpoint]) -> dict[str, str]:
    from wellread.planning.plan import Plan

    config, plan = run.config(), Plan.open(run.plan_file)
    machine, ranks = plan.machine, f"{plan.ranks} rank{'s' * (plan.ranks > 1)}"
    return {
        "model": config.model.name,
        "data": f"{config.data.name}, {config.data.holdout:g} of its documents sealed{', packed' * config.data.pack}",
        "steps": f"{record.batches:,} of {plan.steps:,}",
        "samples read": f"{read.samples:,} of {plan.counts.trainable:,} trainable, {read.readings:,} readings",
        "tokens read": f"{checkpoints[-1].tokens:,} at step {checkpoints[-1].step:,}"
        if checkpoints
        else "no checkpoint",
        "batch": f"{plan.batch_size} = {plan.micro_batch_size} × {plan.accumulation} accumulated × {ranks}",
        "strategy": f"{plan.strategy}, {plan.dtype}: {plan.strategy_reason}",
        "ranks": f"{ranks} on {machine.nodes} node{'s' * (machine.nodes > 1)} ({machine.cluster}, {machine.device})",
        "sequence length": f"{plan.seq_len:,} tokens",
        "learning rate": f"{config.optim.lr}",
        "seed": str(config.schedule.seed),
        "record head": record.head,
    }


def _losses(checkpoints: list[Checkpoint], read: RecordSummary) -> Iterator[Picture]:
    """The loss curve, if any batch was learned from."""
    from wellread.plots.loss import loss_curve

    holdout_losses = [
        (c.step, float(c.manifest["holdout_loss"])) for c in checkpoints if c.manifest.get("holdout_loss")
    ]
    learned = np.flatnonzero(np.isfinite(read.losses))
    if learned.size:
        losses = read.losses[learned]
        alt = f"Training loss goes from {losses[0]:.2f} to {losses[-1]:.2f} nats per target token."
        caption = "Mean loss of each batch as trained, from the record."
        yield Picture("Loss", loss_curve(learned, losses, holdout=holdout_losses), alt, caption)


def _lengths(corpus: Corpus) -> Picture:
    from wellread.plots.lengths import length_histogram

    lengths = corpus.lengths(np.arange(corpus.n))
    groups = {"trainable": lengths[: corpus.n_trainable], "sealed": lengths[corpus.n_trainable :]}
    figure = length_histogram({name: values for name, values in groups.items() if values.size})
    alt = f"Lengths of samples in tokens, {lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}."
    return Picture("Lengths", figure, alt, "Tokens per sample; both groups should have similar distributions.")


def _row(checkpoint: Checkpoint, read: RecordSummary, columns: Iterable[Column]) -> dict[str, Any]:
    step, (start, stop) = checkpoint.step, checkpoint.batches
    before, holdout_loss = read.losses[max(0, step - LOSS_WINDOW) : step], checkpoint.manifest.get("holdout_loss")
    before = before[np.isfinite(before)]
    return {
        "step": f"{step:,}",
        "tokens": f"{checkpoint.tokens:,}",
        "batches": f"{start:,} … {stop - 1:,}" if stop > start else "none",
        "head": checkpoint.head,
        "loss": f"{before.mean():.3f}" if before.size else "–",
        "holdout": "–" if holdout_loss is None else f"{holdout_loss:.3f}",
        "cells": [column.cells.get(step, "–") for column in columns],
    }


def _commands(run: RunDirectory, checkpoints: list[Checkpoint]) -> list[tuple[str, str]]:
    path = shlex.quote(str(run.path))
    commands = [
        ("Verify that the record matches the order", f"wellread verify {path}"),
        ("Watch the curves", f"tensorboard --logdir {shlex.quote(str(run.tb))}"),
    ]
    if checkpoints:
        model = f"AutoModelForCausalLM.from_pretrained({str(checkpoints[-1].model)!r})"
        commands.append(("Load the last checkpoint in Python (transformers)", model))
    return commands
