"""Evaluate a model on sealed samples: its loss on them, and the text that it generates for their prompts."""

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
"""File in a checkpoint: the text that its model generates for the prompts of some sealed samples."""
HOLDOUT_SAMPLES = 256
"""Maximum number of sealed samples for the holdout loss."""
NEW_TOKENS = 48
"""Maximum number of tokens generated for a prompt."""


def holdout_loss(engine: Engine, corpus: Corpus, plan: Plan) -> float | None:
    """Mean loss per target token over up to 256 sealed samples; None if there are none. Every rank calls it."""
    sealed = np.arange(corpus.n_trainable, corpus.n)
    if not len(sealed):
        return None
    sample_ids = np.sort(np.random.default_rng(0).permutation(sealed)[:HOLDOUT_SAMPLES])
    sample_ids = sample_ids[np.argsort(-corpus.lengths(sample_ids), kind="stable")]
    share, counted = _share(sample_ids, plan.ranks)
    sums = np.zeros(2)
    for start in range(0, len(share), plan.micro_batch_size):
        part = slice(start, start + plan.micro_batch_size)
        padded = collate(corpus, share[part])
        batch = (padded.flat() if "varlen" in plan.fast else padded).to(engine.device)
        losses = engine.evaluate(batch).float().cpu().numpy()
        sums += (losses * counted[part]).sum(), (padded.n_targets() * counted[part]).sum()
    total = ranks.gather(torch.from_numpy(sums[None])).numpy().sum(0)
    return float(total[0] / total[1])


def _share(ids: NDArray[np.int64], n_ranks: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """This rank's share of the samples `ids`, and which of them count.

    Every rank gets the same number, because under ZeRO-3 all ranks take part in each forward pass. Some samples may be
    repeated for this; repetitions do not count.
    """
    per_rank = -(-len(ids) // n_ranks)
    share = np.resize(ids, per_rank * n_ranks).reshape(per_rank, n_ranks)[:, ranks.rank()]
    return share, (np.arange(per_rank) * n_ranks + ranks.rank()) < len(ids)


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
    parts = [_prompt_and_reference(corpus, int(i)) for i in share]
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


def _prompt_and_reference(corpus: Corpus, sample_id: int) -> tuple[list[int], list[int]]:
    """Tokens of a sample before its first response, and tokens of that response.

    If all tokens are targets, as in raw text, the two halves of the sample.
    """
    tokens, targets = corpus.tokens(sample_id), corpus.targets(sample_id)
    start = int(targets.argmax())
    if start <= 1:
        half = max(1, len(tokens) // 2)
        return tokens[:half].tolist(), tokens[half:].tolist()
    from_start = targets[start:]
    stop = start + (len(from_start) if from_start.all() else int(from_start.argmin()))
    return tokens[:start].tolist(), tokens[start:stop].tolist()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
