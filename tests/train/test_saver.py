"""Saving on two ranks: all of them take the same way, whatever memory the writing rank finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.engine_ranks import make_model, plan_of, same_weights

from wellread.checkpoint import list_checkpoints

MANIFEST = {"step": 0, "record": {"head": "0" * 64, "batches": [0, 0]}}


def _save(rank: int, meeting: Path, model: Path, place: Path, available: int) -> None:
    import torch.distributed as dist

    from wellread.config import RunConfig
    from wellread.models.load import Source
    from wellread.planning import host_memory
    from wellread.train.engines.torch_engine import TorchEngine
    from wellread.train.saver import Saver

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    engine = TorchEngine(Source.of(model), RunConfig.of(dtype="fp32"), plan_of({"strategy": "ddp", "dtype": "fp32"}, 2))
    host_memory.available = lambda: available if rank == 0 else 2**50  # type: ignore[assignment]
    is_copied = engine.snapshot() is not None
    assert is_copied == (available > 0)
    saver = Saver(place, engine, model, keep_states=1)
    saver.save(0, MANIFEST, {}, lambda: None, lambda stall, seconds: None)
    dist.barrier()  # hangs when one rank is still in another collective
    saver.wait()
    dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("available", [0, 2**50])
def test_all_ranks_save_alike_when_rank_0_is_short_of_memory(tmp_path: Path, available: int) -> None:
    model, place = make_model(tmp_path / "model"), tmp_path / "checkpoints"
    place.mkdir()
    torch.multiprocessing.spawn(_save, (tmp_path / "meeting", model, place, available), nprocs=2)
    (checkpoint,) = list_checkpoints(place)
    assert checkpoint.damage() is None
    assert same_weights(checkpoint.model, model)
