"""One page about a run, `report/index.html`: what it read, what it became, what was measured. Run with

    python -m eval report runs/NAME

The page needs nothing but itself: pictures are inside it, no script runs, every text from the run is escaped.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.membership import ALPHAS, READ, SEALED, SHUFFLED, TASK, UNREAD, scored_groups
from eval.separation import nonmembers_needed, roc

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.results import Result
    from wellread.run import RunDirectory

TEMPLATES = Path(__file__).parent / "templates"
LOSS_WINDOW = 10
"""Batches before a checkpoint whose mean loss stands beside it."""
BATCHES_AT_ONCE = 4096


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
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(_content(run))
    path = run.report / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


@dataclass(frozen=True)
class Picture:
    """A plot as the page shows it."""

    heading: str
    image: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class Reading:
    """What the record says of the whole run."""

    losses: NDArray[np.float64]
    """Mean loss per target token of each batch, nats, float64[batches]; nan where it was skipped."""
    samples: int
    """Different samples read."""
    readings: int
    """Samples read, counting each time."""


def _content(run: RunDirectory) -> dict[str, Any]:
    """Everything that the template names."""
    from wellread.checkpoint import list_checkpoints
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.results import read

    corpus, record, checkpoints = Corpus.open(run.corpus), Record.open(run.record), list_checkpoints(run.checkpoints)
    reading, table = _read_record(record, corpus.n_trainable), run.eval / "membership.parquet"
    results = [result for result in read(table) if result.task == TASK] if table.exists() else []
    aucs = {(result.step, result.group): result for result in results if result.metric == "auc"}
    evaluated = max((step for step, group in aucs if group == READ), default=None)
    return {
        "name": run.name,
        "lead": _lead(run, record, checkpoints),
        "summary": _summary(run, record, reading, checkpoints),
        "counts": {name.replace("_", " "): count for name, count in corpus.meta["counts"].items()},
        "finding": _finding(aucs, evaluated),
        "remarks": list(_remarks(run, results, evaluated)),
        "pictures": list(_pictures(run, corpus, checkpoints, reading, results, evaluated)),
        "checkpoints": [_row(checkpoint, reading, aucs) for checkpoint in checkpoints],
        "loss_window": LOSS_WINDOW,
        "commands": _commands(run, checkpoints),
        "attempts": run.manifest()["attempts"],
    }


def _read_record(record: Record, n_trainable: int) -> Reading:
    """Pass over the record once, some thousand batches at a time, so that its length does not matter."""
    losses, was_read, readings = np.zeros(record.batches), np.zeros(n_trainable, dtype=np.bool_), 0
    for start in range(0, record.batches, BATCHES_AT_ONCE):
        stop = min(start + BATCHES_AT_ONCE, record.batches)
        columns = ["batch_id", "sample_id", "n_targets", "loss", "skipped"]
        table = record.table(columns=columns, batches=(start, stop))
        batch_id, sample_id, n_targets, loss, skipped = (table.column(name).to_numpy() for name in columns)
        places = batch_id - start
        losses[start:stop] = np.bincount(places, weights=loss * n_targets) / np.bincount(places, weights=n_targets)
        losses[batch_id[skipped]] = np.nan
        was_read[sample_id] = True
        readings += sample_id.size
    return Reading(losses, int(was_read.sum()), readings)


def _lead(run: RunDirectory, record: Record, checkpoints: list[Checkpoint]) -> str:
    config, tokens = run.config(), checkpoints[-1].tokens if checkpoints else 0
    return (
        f"{config.model} on {config.data}: {record.batches:,} batches read, {tokens:,} tokens at the last checkpoint."
    )


def _summary(run: RunDirectory, record: Record, reading: Reading, checkpoints: list[Checkpoint]) -> dict[str, str]:
    from wellread.planning.plan import Plan

    config, plan = run.config(), Plan.from_json(run.plan_file.read_text())
    ranks = f"{plan.ranks} rank{'s' * (plan.ranks > 1)}"
    return {
        "model": config.model,
        "data": f"{config.data}, {config.holdout:g} of its documents sealed{', packed' * config.pack}",
        "steps": f"{record.batches:,} of {plan.steps:,}",
        "samples read": f"{reading.samples:,} of {plan.trainable:,} trainable, {reading.readings:,} readings",
        "tokens read": f"{checkpoints[-1].tokens:,} at step {checkpoints[-1].step:,}"
        if checkpoints
        else "no checkpoint",
        "batch": f"{plan.batch_size} = {plan.micro_batch_size} × {plan.accumulation} accumulated × {ranks}",
        "strategy": f"{plan.strategy}, {plan.dtype}: {plan.strategy_reason}",
        "ranks": f"{ranks} on {plan.nodes} node{'s' * (plan.nodes > 1)} ({plan.cluster}, {plan.device})",
        "sequence length": f"{plan.seq_len:,} tokens",
        "learning rate": f"{config.optim.lr}",
        "seed": str(config.seed),
        "record head": record.head,
    }


def _finding(aucs: dict[tuple[int, str], Result], step: int | None) -> str | None:
    """The main result in one sentence; None when there is none."""
    if step is None:
        return None
    read, control = aucs[step, READ], aucs.get((step, SHUFFLED))
    chance = f" Shuffled labels give {_interval(control)}." if control else ""
    return (
        f"At step {step:,}, a sample that the model has read has a lower loss than a sealed one with probability "
        f"{_interval(read)} (AUC; 0.5 is chance).{chance}"
    )


def _interval(result: Result | None) -> str:
    if result is None:
        return "–"
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.ci_low:.3f}, {result.ci_high:.3f}]"


def _remarks(run: RunDirectory, results: list[Result], step: int | None) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    here = [result for result in results if result.step == step and result.group == READ]
    sizes = {result.metric: result for result in here}
    if "n_sealed" in sizes:
        n, sealed = sizes["n_sealed"].n, int(sizes["n_sealed"].value)
        yield f"{n:,} read samples against {sealed:,} sealed ones; intervals are 95%, from a bootstrap over documents."
        for alpha in ALPHAS:
            rate = sizes.get(f"tpr_at_fpr_{alpha:g}")
            needed = f"not stated: it needs {nonmembers_needed(alpha):,} sealed samples"
            yield f"True-positive rate at a false-positive rate of {alpha:.0%}: {_interval(rate) if rate else needed}."
        yield "No blind baseline was run: that the groups do not differ by their text alone rests on the random seal."
    if run.config().pack:
        yield "Samples are packed; compared are the rows in them (segments), each scored alone."
    kind = run.manifest()["identity"]["order"]["kind"]
    if kind != "shuffle":
        yield f"The order is {kind}: “{UNREAD}” is no control here, since it may differ from what was read."


def _pictures(
    run: RunDirectory,
    corpus: Corpus,
    checkpoints: list[Checkpoint],
    reading: Reading,
    results: list[Result],
    step: int | None,
) -> Iterator[Picture]:
    from wellread import plots

    held = [(c.step, float(c.manifest["holdout_loss"])) for c in checkpoints if c.manifest.get("holdout_loss")]
    learned = np.flatnonzero(np.isfinite(reading.losses))
    if learned.size:
        losses = reading.losses[learned]
        image = plots.loss_curve(learned, losses, holdout=held)
        alt = f"Training loss goes from {losses[0]:.2f} to {losses[-1]:.2f} nats per target token."
        yield Picture("Loss", image, alt, "Mean loss of each batch as it was trained, out of the record.")
    if any(result.metric == "auc" for result in results):
        alt = "AUC against the step, with 95% intervals, for read samples and the two controls; numbers below."
        caption = "How well loss tells samples of a group from sealed ones. The dashed line is chance."
        yield Picture("Membership", plots.auc_by_step(results), alt, caption)
    yield from _score_pictures(run, checkpoints, step)
    lengths = corpus.lengths(np.arange(corpus.n))
    groups = {"trainable": lengths[: corpus.n_trainable], "sealed": lengths[corpus.n_trainable :]}
    image = plots.length_histogram({name: values for name, values in groups.items() if values.size})
    alt = f"Lengths of samples in tokens, {lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}."
    yield Picture("Lengths", image, alt, "Tokens per sample; the two sides should look alike.")


def _score_pictures(run: RunDirectory, checkpoints: list[Checkpoint], step: int | None) -> Iterator[Picture]:
    """ROC and scores at the last evaluated checkpoint."""
    from wellread import plots

    chosen = [checkpoint for checkpoint in checkpoints if checkpoint.step == step]
    scores = scored_groups(run, chosen[0]) if chosen else {}
    if not scores:
        return
    read, sealed = scores[READ], scores[SEALED]
    alt = f"ROC curve of {read.size:,} read against {sealed.size:,} sealed samples, on linear and on log axes."
    caption = f"Every threshold on the loss at step {step:,}. Log axes show the safest guesses."
    yield Picture("ROC", plots.roc(*roc(read, sealed), nonmembers=sealed.size), alt, caption)
    alt = f"Mean score {read.mean():.3f} of read and {sealed.mean():.3f} of sealed samples, in nats per token."
    image = plots.score_histogram({READ: read, SEALED: sealed})
    yield Picture("Scores", image, alt, f"Log-likelihood of single samples at step {step:,}; higher is likelier.")


def _row(checkpoint: Checkpoint, reading: Reading, aucs: dict[tuple[int, str], Result]) -> dict[str, str]:
    step, (start, stop) = checkpoint.step, checkpoint.batches
    before, held = reading.losses[max(0, step - LOSS_WINDOW) : step], checkpoint.manifest.get("holdout_loss")
    before = before[np.isfinite(before)]
    return {
        "step": f"{step:,}",
        "tokens": f"{checkpoint.tokens:,}",
        "batches": f"{start:,} … {stop - 1:,}" if stop > start else "none",
        "head": checkpoint.head,
        "loss": f"{before.mean():.3f}" if before.size else "–",
        "holdout": "–" if held is None else f"{held:.3f}",
        "read": _interval(aucs.get((step, READ))),
        "unread": _interval(aucs.get((step, UNREAD))),
    }


def _commands(run: RunDirectory, checkpoints: list[Checkpoint]) -> list[tuple[str, str]]:
    path = shlex.quote(str(run.path))
    commands = [
        ("Evaluate every checkpoint, and write this page again", f"python -m eval membership {path}"),
        ("Prove that the record is what the order says", f"python -m eval verify {path}"),
        ("Watch the curves", f"tensorboard --logdir {shlex.quote(str(run.tb))}"),
    ]
    if checkpoints:
        model = f"AutoModelForCausalLM.from_pretrained({str(checkpoints[-1].model)!r})"
        commands.append(("Load the last checkpoint in Python (transformers)", model))
    return commands
