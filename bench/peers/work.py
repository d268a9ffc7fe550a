"""What both sides of a comparison train: a model, samples, batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.models.registry import find

VOCABULARY = 50304
"""Number of rows of Pythia's embedding: its number of tokens, rounded up."""
WARM = 3
"""Number of warm-up steps of an epoch, which are not measured."""
RUN_DATA = ("model", "data", "corpora", "seq_len", "holdout")
"""Settings of a run that define its corpus."""


@dataclass(frozen=True)
class Work:
    """Model and sizes that both sides use."""

    model: str
    strategy: str
    ranks: int
    batch_size: int
    micro_batch_size: int
    seq_len: int
    samples: int

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return self.samples // self.batch_size


def make_model(directory: Path, name: str, tokenizer: Path) -> None:
    """Write a gpt_neox with random weights in the shape of `name`, with Pythia's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

    spec = find(name)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate,
        max_position_embeddings=spec.positions,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(directory)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token=end, pad_token=end).save_pretrained(directory)


def make_data(work: Work, data: Path, folder: Path) -> None:
    """Write the first rows of `data` that give `work.samples` samples to rows.jsonl."""
    rows = data.read_text().splitlines(keepends=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(rows[: work.samples + work.samples // 4]))
    usable = np.sort([numbers[0] for numbers in compiled(work, folder).samples()["rows"].to_pylist()])
    if len(usable) < work.samples:
        raise UserError(f"--samples {work.samples}: {data} has only {len(usable)}; choose fewer")
    shutil.rmtree(folder / "corpora")
    file.write_text("".join(rows[row - 1] for row in usable[: work.samples]))


def compiled(work: Work, folder: Path) -> Corpus:
    """The corpus that runs of `work` read."""
    from finetune.prepare import prepare

    settings = run_settings(work, folder)
    return Corpus.open(prepare(RunConfig.of(**{name: settings[name] for name in RUN_DATA})))


def mean_length(work: Work, folder: Path) -> float:
    """Mean number of tokens of a sample."""
    corpus = compiled(work, folder)
    return float(corpus.lengths(np.arange(corpus.n_trainable)).mean())


def run_settings(work: Work, folder: Path) -> dict[str, Any]:
    """Settings of a run of one epoch that saves only at its start and end."""
    return {
        "model": str(folder / "model"),
        "data": f"dolly@{folder / 'rows.jsonl'}",
        "corpora": str(folder / "corpora"),
        "out": str(folder / "run"),
        "seq_len": work.seq_len,
        "holdout": 0.0,
        "steps": work.steps,
        "batch_size": work.batch_size,
        "micro_batch_size": work.micro_batch_size,
        "ranks_per_node": work.ranks,
        "strategy": work.strategy,
        "save_every": work.steps,
        "log_every": work.steps,
    }


def packed_settings(work: Work, folder: Path) -> dict[str, Any]:
    """The same epoch with packed samples and the same number of tokens per step."""
    sequences = packed_batch(work, folder)
    steps = max(WARM + 1, int(work.samples * mean_length(work, folder) / work.seq_len / sequences))
    overrides = {"pack": True, "steps": steps, "batch_size": sequences, "save_every": steps, "log_every": steps}
    settings = run_settings(work, folder) | overrides
    del settings["micro_batch_size"]
    return settings


def packed_batch(work: Work, folder: Path) -> int:
    """Full sequences per step that have as many tokens as the samples of a step, a multiple of the ranks."""
    tokens = work.samples * mean_length(work, folder)
    return max(work.ranks, round(tokens / work.steps / work.seq_len / work.ranks) * work.ranks)


def labeled(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Rows for a peer: the corpus's tokens, with label -100 for tokens without loss."""
    for sample in range(corpus.n_trainable):
        tokens = corpus.tokens(sample).astype(np.int64)
        labels = np.where(corpus.targets(sample), tokens, -100)
        yield {"input_ids": tokens.tolist(), "labels": labels.tolist(), "length": len(tokens)}
