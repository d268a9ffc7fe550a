"""How a batch is divided over ranks, micro-batches and accumulation."""

from __future__ import annotations

from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.models.adapter import targets
from wellread.models.spec import ModelSpec
from wellread.planning.estimate import Work

LARGEST_MICRO_BATCH = 8


def micro_batches(batch_size: int, ranks: int, asked: int | None) -> list[int]:
    """Micro-batches that divide the batch evenly, largest first; the one that is asked for alone.

    Raises
    ------
    UserError
        When the batch cannot be divided over the ranks, or over the micro-batches that are asked for.
    """
    if batch_size % ranks:
        near = [b for b in (batch_size // ranks * ranks, -(-batch_size // ranks) * ranks) if b]
        raise UserError(
            f"--batch_size {batch_size}: not divisible by {ranks} ranks; choose {' or '.join(map(str, near))}"
        )
    per_rank = batch_size // ranks
    if asked is None:
        return [m for m in range(min(per_rank, LARGEST_MICRO_BATCH), 0, -1) if per_rank % m == 0]
    if per_rank % asked:
        raise UserError(f"--micro_batch_size {asked}: does not divide the {per_rank} samples of each rank and step")
    return [asked]


def ways(
    config: RunConfig, spec: ModelSpec, ranks: int, batch_size: int, micros: list[int], checkpoints: int
) -> list[Work]:
    """What each rank does for each micro-batch of `micros`, where so many checkpoints are kept."""
    return [
        Work(
            dtype=config.model.dtype,
            micro_batch=micro,
            accumulation=batch_size // (micro * ranks),
            seq_len=config.data.seq_len or spec.seq_len,
            lora_rank=config.lora.rank,
            lora_modules=targets(config.lora, spec) if config.lora.rank else (),
            packed=config.data.pack,
            checkpoints=checkpoints,
            states=config.save.keep_states,
        )
        for micro in micros
    ]
