"""Run the model of a checkpoint: write the missing texts, batch by batch, and compute losses on sealed samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.generations import prompts, sealed, texts

if TYPE_CHECKING:
    from torch import nn

    from eval.generations.evaluation import Generations
    from eval.generations.prompts import Batch
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint


def fill(
    of: Generations,
    checkpoint: Checkpoint,
    written: texts.Written,
    losses: sealed.SealedLosses | None,
    reporter: Reporter,
) -> sealed.SealedLosses:
    """Write the missing texts of a checkpoint and return its losses; each batch is kept as soon as it is complete."""
    from wellread.processes import importing

    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

    from wellread.models.continuations import positions
    from wellread.models.load import loaded

    with loaded(checkpoint.model, of.device or ("cuda" if torch.cuda.is_available() else "cpu")) as (model, device):
        batches = list(prompts.batches(of.fixed_prompts, of.new_tokens, positions(model.config)))
        for method, batch in written.missing(batches):
            new = write(of, checkpoint, model, device, method, batch)
            written.write([*written.read(), *new])
            reporter.move_to(reporter.scored + len(new))
        if losses is None:
            losses = sealed.compute(
                model,
                of.samples,
                of.sealed_ids,
                of.tokenizer,
                device,
                lambda n: reporter.move_to(reporter.scored + n),
            )
            losses.write(sealed.path(of.run, checkpoint), of.settings_of_losses(checkpoint))
    return losses


def write(
    of: Generations, checkpoint: Checkpoint, model: nn.Module, device: str, method: str, batch: Batch
) -> list[texts.Text]:
    """The texts of one batch."""
    from wellread.models.continuations import continuations

    seed = texts.seed_of(of.seed, checkpoint.step, batch.number) if method == texts.SAMPLED else None
    rows = continuations(
        model,
        [prompt.tokens for prompt in batch.prompts],
        new_tokens=batch.new_tokens,
        end=of.tokenizer.eos,
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
            text=texts.plain(of.tokenizer, row),
        )
        for prompt, row in zip(batch.prompts, rows, strict=True)
    ]
