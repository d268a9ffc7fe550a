"""Run the model of a checkpoint: write the missing texts, batch by batch, and compute losses on sealed samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.generations import prompts, sealed, texts

if TYPE_CHECKING:
    from torch import nn

    from eval.generations.prompts import Batch, Prompt
    from eval.progress import Reporter
    from eval.separation import Ints
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.corpus.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is written and measured at each checkpoint."""

    prompts: Sequence[Prompt]
    new_tokens: int
    samples: Corpus | Segments
    sealed_ids: Ints
    tokenizer: Tokenizer
    seed: int
    device: str | None


def fill(
    work: Work,
    checkpoint: Checkpoint,
    written: texts.Written,
    losses: sealed.SealedLosses | None,
    reporter: Reporter,
) -> sealed.SealedLosses:
    """Write the missing texts of a checkpoint and return its losses; each batch is kept as soon as it is complete.

    The caller has the lock of the texts. Losses are computed unless they are given; the caller keeps them.
    """
    from wellread.processes import importing

    with importing():
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

    from wellread.models.continuations import positions
    from wellread.models.load import loaded

    with loaded(checkpoint.model, work.device) as (model, device):
        batches = list(prompts.batches(work.prompts, work.new_tokens, positions(model.config)))
        for method, batch in written.missing(batches):
            new = write(work, checkpoint, model, device, method, batch)
            written.write([*written.read(), *new])
            reporter.move_to(reporter.scored + len(new))
        if losses is not None:
            return losses
        return sealed.compute(
            model,
            work.samples,
            work.sealed_ids,
            work.tokenizer,
            device,
            lambda n: reporter.move_to(reporter.scored + n),
        )


def write(
    work: Work, checkpoint: Checkpoint, model: nn.Module, device: str, method: str, batch: Batch
) -> list[texts.Text]:
    """The texts of one batch."""
    from wellread.models.continuations import continuations

    seed = texts.seed_of(work.seed, checkpoint.step, batch.number) if method == texts.SAMPLED else None
    rows = continuations(
        model,
        [prompt.tokens for prompt in batch.prompts],
        new_tokens=batch.new_tokens,
        end=work.tokenizer.eos,
        seed=seed,
        top_p=texts.TOP_P,
        device=device,
    )
    return [
        texts.Text(
            prompt_id=prompt.id,
            method=method,
            batch=batch.number,
            seed=seed,
            tokens=row,
            text=texts.plain(work.tokenizer, row),
        )
        for prompt, row in zip(batch.prompts, rows, strict=True)
    ]
