"""How a batch is divided into ranks, micro-batches and accumulation steps."""

from __future__ import annotations

from wellread.config import RunConfig, TextConfig
from wellread.errors import UserError
from wellread.models.adapter import targets
from wellread.models.spec import ModelSpec
from wellread.planning.estimate import Work

LARGEST_MICRO_BATCH = 8
"""Samples, unless micro-batches are divided by tokens."""
TOKENS_OF_A_PASS = 32_768
"""Most tokens of a forward pass with the fast path `tokens`: larger products do not run faster on one GPU."""


def micro_batches(
    batch_size: int, ranks: int, micro_batch_size: int | None, largest: int = LARGEST_MICRO_BATCH
) -> list[int]:
    """Micro-batch sizes that divide the batch evenly, largest first; only `micro_batch_size` if it is given.

    Parameters
    ----------
    largest : int
        The largest of them.

    Raises
    ------
    UserError
        When the batch size is not a multiple of the ranks, or of `micro_batch_size` on each rank.
    """
    if batch_size % ranks:
        near = [b for b in (batch_size // ranks * ranks, -(-batch_size // ranks) * ranks) if b]
        raise UserError(
            f"--batch_size {batch_size}: not divisible by {ranks} ranks; choose {' or '.join(map(str, near))}"
        )
    per_rank = batch_size // ranks
    if micro_batch_size is None:
        return [m for m in range(min(per_rank, largest), 0, -1) if per_rank % m == 0]
    if per_rank % micro_batch_size:
        raise UserError(
            f"--micro_batch_size {micro_batch_size}: does not divide the {per_rank} samples of each rank and step"
        )
    return [micro_batch_size]


def ways(
    config: RunConfig,
    spec: ModelSpec,
    ranks: int,
    batch_size: int,
    micros: list[int],
    checkpoints: int,
    fast: tuple[str, ...] = (),
) -> list[Work]:
    """The work of each rank, one for each micro-batch size in `micros`; `checkpoints` checkpoints are kept."""
    return [
        Work(
            dtype=config.model.dtype,
            micro_batch=micro,
            accumulation=batch_size // (micro * ranks),
            seq_len=config.data.seq_len or spec.seq_len,
            freeze=config.model.freeze or "",
            lora_rank=config.lora.rank,
            lora_modules=targets(config.lora, spec) if config.lora.rank else (),
            fp32_gradients=config.model.grad_accum_dtype == "fp32",
            packed=config.data.pack,
            even=config.data.pack or (isinstance(config.data, TextConfig) and config.data.packing == "stream"),
            fast=fast,
            float8=config.model.float8,
            checkpoints=checkpoints,
            states=config.save.keep_states,
        )
        for micro in micros
    ]
