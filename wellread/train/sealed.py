"""What a model makes of samples that it never trains on: its loss there, and what it writes after their prompts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wellread.corpus.batch import collate
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.models import generate
from wellread.planning.plan import Plan
from wellread.train import ranks
from wellread.train.engines.base import Engine

GENERATIONS = "generations.jsonl"
"""In a checkpoint: what its model writes after the prompts of some sealed samples."""
HOLDOUT_SAMPLES = 256
"""Sealed samples whose loss is measured."""
NEW_TOKENS = 48
"""Most tokens that a prompt is continued with."""


def holdout_loss(engine: Engine, corpus: Corpus, plan: Plan) -> float | None:
    """Mean loss per target token over up to 256 sealed samples; None without any. Every rank calls it."""
    sealed = np.arange(corpus.n_trainable, corpus.n)
    if not len(sealed):
        return None
    chosen = np.sort(np.random.default_rng(0).permutation(sealed)[:HOLDOUT_SAMPLES])
    chosen = chosen[np.argsort(-corpus.lengths(chosen), kind="stable")]
    mine, counted = _share(chosen, plan.ranks)
    sums = np.zeros(2)
    for start in range(0, len(mine), plan.micro_batch_size):
        part = slice(start, start + plan.micro_batch_size)
        batch = collate(corpus, mine[part]).to(engine.device)
        losses = engine.evaluate(batch).float().cpu().numpy()
        sums += (losses * counted[part]).sum(), (batch.targets.sum(1).cpu().numpy() * counted[part]).sum()
    total = ranks.gather(torch.from_numpy(sums[None])).numpy().sum(0)
    return float(total[0] / total[1])


def _share(ids: NDArray[np.int64], n_ranks: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """This rank's share of some samples, and which of them count.

    Every rank gets as many as the others, if need be one again: under ZeRO-3 a forward pass gathers weights from all.
    """
    per_rank = -(-len(ids) // n_ranks)
    mine = np.resize(ids, per_rank * n_ranks).reshape(per_rank, n_ranks)[:, ranks.rank()]
    return mine, (np.arange(per_rank) * n_ranks + ranks.rank()) < len(ids)


def generations(engine: Engine, corpus: Corpus, tokenizer: Tokenizer, plan: Plan, count: int) -> list[dict[str, Any]]:
    """What the model writes after the prompts of the first `count` sealed samples. Every rank calls it.

    Returns
    -------
    list of dict
        `sample_id`; `prompt`, `generated`, `reference`, as text; `ended`, whether by itself. By sample id.
    """
    ids = np.arange(corpus.n_trainable, min(corpus.n, corpus.n_trainable + count))
    if not len(ids):
        return []
    mine, counted = _share(ids, plan.ranks)
    parts = [_prompt_and_reference(corpus, int(i)) for i in mine]
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
            "prompt": tokenizer.decode(prompt),
            "generated": tokenizer.decode([token for token in tokens if token != tokenizer.eos]),
            "reference": tokenizer.decode([token for token in reference if token != tokenizer.eos]),
            "ended": tokenizer.eos in tokens,
        }
        for i, (prompt, reference), tokens, own in zip(mine, parts, written, counted, strict=True)
        if own
    ]
    gathered = [row for each in ranks.gather_objects(rows) for row in each]
    return sorted(gathered, key=lambda row: int(row["sample_id"]))


def _prompt_and_reference(corpus: Corpus, sample_id: int) -> tuple[list[int], list[int]]:
    """Tokens of a sample before its first response, and that response.

    Where all tokens are targets, as in raw text, they are the two halves of the sample.
    """
    tokens, targets = corpus.tokens(sample_id), corpus.targets(sample_id)
    start = int(targets.argmax())
    if start <= 1:
        half = max(1, len(tokens) // 2)
        return tokens[:half].tolist(), tokens[half:].tolist()
    rest = targets[start:]
    stop = start + (len(rest) if rest.all() else int(rest.argmin()))
    return tokens[:start].tolist(), tokens[start:stop].tolist()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
