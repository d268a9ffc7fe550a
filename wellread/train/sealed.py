"""Evaluate a model on sealed samples: its loss on them, and the text that it generates for their prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wellread.config import WatchConfig
from wellread.corpus.batch import collate
from wellread.corpus.prompts import prompt_and_reference
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.models import generate
from wellread.planning.plan import Plan
from wellread.record.sealed import SealedLosses
from wellread.train import ranks
from wellread.train.engines.base import Engine
from wellread.train.rotation import Rotation, measured_steps

GENERATIONS = "generations.jsonl"
"""File in a checkpoint: the text that its model generates for the prompts of some sealed samples."""
HOLDOUT_SAMPLES = 256
"""Maximum number of sealed samples for the holdout loss."""
NEW_TOKENS = 48
"""Maximum number of tokens generated for a prompt."""


@dataclass
class Measured:
    """Losses of sealed samples, measured at one step."""

    holdout: float | None
    """Mean loss per target token over the fixed samples; None if it was not measured, or if no sample is sealed."""
    losses: SealedLosses | None
    """Loss of each sample of the rotation; None if no sample is sealed."""


class SealedMeter:
    """Measures the loss on sealed samples: that of a fixed set, and that of the next samples of a rotation.

    Measuring changes nothing in the run: without dropout no random number is drawn, and the model is in training mode
    afterwards.
    """

    def __init__(self, corpus: Corpus, plan: Plan, watch: WatchConfig, seed: int) -> None:
        self._corpus, self._plan, self._watch, self._seed = corpus, plan, watch, seed
        self._fixed = fixed_samples(corpus)
        self.values = 0
        """Number of losses that the run has measured so far, the place in the rotation; only rank 0 knows it."""

    @cached_property
    def _rotation(self) -> Rotation:
        """Only on rank 0: the other ranks do not read the samples table."""
        return Rotation(self._corpus, self._seed, count=self._watch.eval_samples, measurements=len(self.steps))

    @cached_property
    def steps(self) -> frozenset[int]:
        """Steps at which the rotation is measured."""
        return measured_steps(self._plan.save_steps, self._plan.steps, self._watch.eval_every)

    def has_holdout_loss(self, step: int) -> bool:
        """Whether the holdout loss is measured at a step without a checkpoint.

        It is measured every `eval_every` steps, if as many samples are requested as it consists of.
        """
        every = self._watch.eval_every
        return every is not None and step % every == 0 and self._watch.eval_samples >= len(self._fixed)

    def measure(self, engine: Engine, step: int, *, holdout: bool) -> Measured:
        """Measure the next samples of the rotation and, with `holdout`, the fixed set. Every rank calls it."""
        if not len(self._fixed):
            return Measured(None, None)
        turn = self._next().tolist() if ranks.rank() == 0 else []
        sample_ids = np.array(ranks.gather_objects(turn)[0], dtype=np.int64)
        fixed = self._fixed if holdout else self._fixed[:0]
        more = np.setdiff1d(sample_ids, fixed)
        sums = [summed_losses(engine, self._corpus, self._plan, ids) for ids in (fixed, more) if len(ids)]
        ids, values = np.concatenate([fixed, more]), np.concatenate(sums)
        self.values += len(sample_ids)
        order = np.argsort(ids)
        n_targets = self._corpus.n_targets(sample_ids)
        losses = values[order[np.searchsorted(ids[order], sample_ids)]] / n_targets
        mean = float(values[: len(fixed)].sum() / self._corpus.n_targets(fixed).sum()) if len(fixed) else None
        recorded = SealedLosses(step=step, sample_ids=sample_ids, n_targets=n_targets, losses=losses.astype(np.float32))
        return Measured(mean, recorded)

    def _next(self) -> NDArray[np.int64]:
        rotation = self._rotation
        return rotation.take(self.values // rotation.count)


def fixed_samples(corpus: Corpus) -> NDArray[np.int64]:
    """The up to 256 sealed samples of the holdout loss, ascending."""
    sealed = np.arange(corpus.n_trainable, corpus.n)
    return np.sort(np.random.default_rng(0).permutation(sealed)[:HOLDOUT_SAMPLES])


def summed_losses(engine: Engine, corpus: Corpus, plan: Plan, sample_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss of each sample, summed over its target tokens, in nats, (n,); the same on all ranks, which all call it."""
    order = np.argsort(-corpus.lengths(sample_ids), kind="stable")
    share, _ = _share(sample_ids[order], plan.ranks)
    full = _in_full_batches(share, plan.micro_batch_size)
    values = np.empty(len(full))
    for start in range(0, len(full), plan.micro_batch_size):
        part = slice(start, start + plan.micro_batch_size)
        padded = collate(corpus, full[part], plan.machine.device)
        batch = (padded.flat() if "varlen" in plan.fast else padded).to(engine.device)
        values[part] = engine.evaluate(batch).float().cpu().numpy()
    gathered = ranks.gather(torch.from_numpy(values[None, : len(share)])).numpy()  # (ranks, per rank)
    sums = np.empty(len(sample_ids))
    sums[order] = gathered.T.ravel()[: len(sample_ids)]
    return sums


def _share(ids: NDArray[np.int64], n_ranks: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """This rank's share of the samples `ids`, and which of them count.

    Every rank gets the same number, because under ZeRO-3 all ranks take part in each forward pass. Some samples may be
    repeated for this; repetitions do not count.
    """
    per_rank = -(-len(ids) // n_ranks)
    share = np.resize(ids, per_rank * n_ranks).reshape(per_rank, n_ranks)[:, ranks.rank()]
    return share, (np.arange(per_rank) * n_ranks + ranks.rank()) < len(ids)


def _in_full_batches(share: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The samples, the last one repeated until every batch has `size`; fewer than `size` samples stay as they are.

    How many are left for the last batch differs each time, and a CPU keeps kernels for each number of samples
    (`wellread.corpus.padding`).
    """
    return np.pad(share, (0, -len(share) % size if len(share) > size else 0), mode="edge")


def generations(engine: Engine, corpus: Corpus, tokenizer: Tokenizer, plan: Plan, count: int) -> list[dict[str, Any]]:
    """Text that the model generates for the prompts of the first `count` sealed samples. Every rank calls it.

    Returns
    -------
    list of dict
        `sample_id`; `prompt`, `generated` and `reference`, as text; `ended`, whether the model ended its text. Sorted
        by sample id.
    """
    ids = np.arange(corpus.n_trainable, min(corpus.n, corpus.n_trainable + count))
    if not len(ids):
        return []
    share, counted = _share(ids, plan.ranks)
    parts = [prompt_and_reference(corpus, int(i)) for i in share]
    written = generate.greedy(
        engine.next_logits,
        [prompt for prompt, _ in parts],
        new_tokens=NEW_TOKENS,
        longest=plan.seq_len,
        end=tokenizer.eos,
        device=engine.device,
    )
    rows = [
        {
            "sample_id": int(i),
            "prompt": tokenizer.decode(_without_begin(prompt, tokenizer)),
            "generated": tokenizer.decode([token for token in tokens if token != tokenizer.eos]),
            "reference": tokenizer.decode([token for token in reference if token != tokenizer.eos]),
            "ended": tokenizer.eos in tokens,
        }
        for i, (prompt, reference), tokens, counts in zip(share, parts, written, counted, strict=True)
        if counts
    ]
    gathered = [row for rows_of_rank in ranks.gather_objects(rows) for row in rows_of_rank]
    return sorted(gathered, key=lambda row: int(row["sample_id"]))


def _without_begin(prompt: list[int], tokenizer: Tokenizer) -> list[int]:
    """The prompt without the tokens that the tokenizer puts before each text, so it can be tokenized again."""
    begins = tokenizer.begins
    return prompt[len(begins) :] if prompt[: len(begins)] == begins else prompt


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
