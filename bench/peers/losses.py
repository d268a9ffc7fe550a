"""Losses of every sample on both sides, with the same weights: where they differ, speeds are not compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.record.reader import Record
from wellread.run import RunDirectory

RATE = 1e-30
"""Learning rate of an epoch whose losses are compared: no weight changes, so every loss is one of the first weights, in
whatever order a side reads the samples."""
MEDIAN, LARGEST = 1e-3, 1e-2
"""Largest median and largest difference of two losses of a sample, in nats. Both sides compute in bf16, in batches of
other shapes: a sample with two scored tokens differs by 0.003, the median by 0.0002. If the samples of a packed row see
each other, their losses differ by 0.04, and by a median of 0.006."""


@dataclass(frozen=True)
class Scored:
    """Loss of one sample."""

    n: int
    """Number of scored tokens."""
    total: float
    """Sum of their losses, in nats."""


Losses = dict[str, Scored]
"""Losses of a peer, by the digest of a sample's tokens and loss mask: equal digests mean equal samples."""


@dataclass(frozen=True)
class Reading:
    """A loss that wellread has recorded: that of a sample, or the mean over the targets of a packed one."""

    members: tuple[str, ...]
    """Digests of its segments, or of the sample itself."""
    loss: float


def recorded(run: Path) -> list[Reading]:
    """What a run has recorded."""
    opened = RunDirectory.open(run)
    corpus, table = Corpus.open(opened.corpus), Record.open(opened.record).table(["sample_id", "loss"])
    members: list[list[str]] = [[] for _ in range(corpus.n_trainable)]
    if corpus.packed:
        segments = Segments(corpus)
        for segment, sample in enumerate(segments.sample_of(np.arange(segments.n_trainable)).tolist()):
            members[sample].append(segments.digest(segment).hex())
    else:
        members = [[corpus.digest(sample).hex()] for sample in range(corpus.n_trainable)]
    rows = zip(table["sample_id"].to_pylist(), table["loss"].to_pylist(), strict=True)
    return [Reading(tuple(members[sample]), loss) for sample, loss in rows]


def why_different(readings: Sequence[Reading], peer_losses: Losses) -> str | None:
    """Why the losses of wellread are not those of a peer; None if they are equal."""
    unread = [reading for reading in readings if not peer_losses.keys() >= set(reading.members)]
    if unread or not readings:
        return f"{len(unread)} of {len(readings)} samples were not read by the peer with the same tokens and loss mask"
    differences = distances(readings, peer_losses)
    median, largest = float(np.median(differences)), float(differences.max())
    if median <= MEDIAN and largest <= LARGEST:
        return None
    return (
        f"the losses differ by up to {largest:.4f} nats, by a median of {median:.4f} "
        f"(allowed: {LARGEST:g} and {MEDIAN:g})"
    )


def distances(readings: Sequence[Reading], peer_losses: Losses) -> NDArray[np.float64]:
    """Difference of each recorded loss from that of the same tokens on the other side, (readings,), in nats."""
    means = []
    for reading in readings:
        parts = [peer_losses[member] for member in reading.members]
        means.append(sum(part.total for part in parts) / sum(part.n for part in parts))
    return np.abs(np.array([reading.loss for reading in readings]) - means)


# --- in the process of a peer ----------------------------------------------------------------------------------------


def samples_of(
    tokens: NDArray[np.int64], labels: NDArray[np.int64], losses: NDArray[np.float32], bounds: Sequence[int]
) -> Iterator[tuple[str, Scored]]:
    """The samples of a row and their losses.

    Parameters
    ----------
    tokens : (length,)
    labels : (length,)
        -100 for tokens without loss.
    losses : (length - 1,)
        Loss of each token but the first.
    bounds : (samples + 1,)
        First token of each sample, and the end of the last one; what follows is padding.
    """
    for start, stop in pairwise(bounds):
        scored = labels[start:stop] != -100
        # The first token of a sample is never scored: no token predicts it.
        values = losses[start : stop - 1][scored[1:]].astype(np.float64)
        yield digest(tokens[start:stop], scored).hex(), Scored(len(values), float(values.sum()))


def keep(model: Any, scores: Losses) -> None:
    """Add the losses of all samples that a transformers model reads in training to `scores`."""

    def hook(_: Any, __: Any, inputs: dict[str, Any], outputs: Any) -> None:
        tokens, labels = inputs["input_ids"], inputs["labels"]
        losses = token_losses(labels, outputs)
        for row in range(len(tokens)):
            row_tokens, row_labels, row_losses = [each[row].cpu().numpy() for each in (tokens, labels, losses)]
            scores.update(samples_of(row_tokens, row_labels, row_losses, bounds_of(inputs, row)))

    model.register_forward_hook(hook, with_kwargs=True)


def token_losses(labels: Any, outputs: Any) -> Any:
    """Losses of all tokens but the first of each row, (rows, length - 1) float32; meaningless where nothing is scored.

    TRL's outputs have log-probabilities, others have logits.
    """
    import torch.nn.functional as F

    if getattr(outputs, "log_probs", None) is not None:
        return -outputs.log_probs.detach().float()
    logits = outputs.logits[:, :-1].detach().float()
    return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")


def bounds_of(inputs: dict[str, Any], row: int) -> list[int]:
    """Bounds of the samples of a row: where positions start at 0, or one sample, with padding behind it."""
    if inputs.get("attention_mask") is not None:
        return [0, int(inputs["attention_mask"][row].sum())]
    positions = inputs["position_ids"][row]
    return [*(positions == 0).nonzero().flatten().tolist(), len(positions)]


def write(scores: Losses, file: Path) -> None:
    """Write losses for `read`."""
    file.write_text(json.dumps({name: [scored.n, scored.total] for name, scored in scores.items()}))


def read(folder: Path) -> Losses:
    """Losses that the ranks of a peer have written to `folder`."""
    files = [json.loads(file.read_text()) for file in sorted(folder.glob("losses-*.json"))]
    return {name: Scored(*values) for content in files for name, values in content.items()}
