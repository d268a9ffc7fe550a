"""What the ranks exchange in a step: the bytes on the wire, and that unusual values survive the exchange."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wellread.corpus.batch import Batch
from wellread.corpus.digest import DIGEST_BYTES, digest
from wellread.order.permutation import Order
from wellread.train import evidence, ranks
from wellread.train.evidence import RANK, SAMPLE, deserialize, of_micro_batch, of_rank, serialize

GOLDEN = (
    "0f00000000000000" "0000a00000000000" "0000000100000000"  # SIGTERM, peaks of 10 MiB and of 2^24 bytes
    "0300000000000000" "b168de3a00010000" "6500000000000000" "4000000000000000" "6800000000000000"
    "0000c03f" "000102030405060708090a0b0c0d0e00"
)  # fmt: skip
"""Message of one sample, which must not change: `golden_rank`, then `golden_sample`."""


def sample(
    slot: int = 0, sample_id: int = 0, n_tokens: int = 5, n_targets: int = 3, width: int = 8, loss: float = 1.0,
    digest: bytes = bytes(DIGEST_BYTES),
) -> NDArray[np.void]:  # fmt: skip
    return np.array([(slot, sample_id, n_tokens, n_targets, width, loss, list(digest))], SAMPLE)


def golden_sample() -> NDArray[np.void]:
    digest = bytes([*range(15), 0])
    return sample(3, 2**40 + 987654321, n_tokens=101, n_targets=64, width=104, loss=1.5, digest=digest)


def golden_rank() -> NDArray[np.void]:
    return of_rank(15, (10 << 20, 1 << 24))


def as_sent(*messages: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What gathering returns: new memory, one row per rank."""
    return np.frombuffer(b"".join(m.tobytes() for m in messages), np.uint8).reshape(len(messages), -1)


# --- the bytes


def test_layout_is_explicit_and_little_endian() -> None:
    assert SAMPLE.itemsize == 60
    assert SAMPLE.fields is not None
    assert {name: (field[0].str, field[1]) for name, field in SAMPLE.fields.items()} == {
        "slot": ("<i8", 0),
        "sample_id": ("<i8", 8),
        "n_tokens": ("<i8", 16),
        "n_targets": ("<i8", 24),
        "width": ("<i8", 32),
        "loss": ("<f4", 40),
        "digest": ("|V16", 44),
    }
    assert (SAMPLE["digest"].base, SAMPLE["digest"].shape) == (np.dtype("u1"), (DIGEST_BYTES,))
    assert RANK.itemsize == 24
    assert RANK.fields is not None
    assert {name: (field[0].str, field[1]) for name, field in RANK.fields.items()} == {
        "stop_signal": ("<i8", 0),
        "host_peak": ("<i8", 8),
        "gpu_peak": ("<i8", 16),
    }


def test_bytes_of_a_known_message() -> None:
    assert serialize(golden_rank(), golden_sample()).tobytes().hex() == GOLDEN


def test_message_equals_one_written_with_struct() -> None:
    """The rank once, then every sample, without padding."""
    numbers = [(1, 7, 9, 4, 16, -2.25, bytes(range(16))), (0, 2**41 + 1, 16, 15, 16, 0.0, bytes(range(240, 256)))]
    written = struct.pack("<3q", 0, 5, 6) + b"".join(struct.pack("<5qf16s", *row) for row in numbers)
    samples = np.concatenate([sample(*row) for row in numbers])
    assert serialize(of_rank(0, (5, 6)), samples).tobytes() == written


def test_each_sample_adds_60_bytes_to_a_message() -> None:
    sizes = [serialize(of_rank(0, (0, 0)), np.zeros(n, SAMPLE)).nbytes for n in (0, 1, 2, 1000)]
    assert sizes == [24, 84, 144, 60_024]


# --- serialize and deserialize

ODD_LOSSES = (0x7FC00000, 0xFFC00001, 0x7F800001, 0x80000000, 0x00000001, 0x7F800000, 0xFF800000)
"""Bits of NaN, a negative NaN with a payload, a signaling NaN, -0.0, the smallest positive number, both infinities."""


def test_unusual_values_survive_bit_by_bit() -> None:
    n = len(ODD_LOSSES)
    samples = np.zeros(n, SAMPLE)
    samples["slot"], samples["sample_id"] = np.arange(n), 2**40 + np.arange(n) * (2**22 + 1)
    samples["loss"] = np.array(ODD_LOSSES, np.uint32).view(np.float32)
    digests = [bytes(16), bytes([0] * 15 + [1]), bytes([1] + [0] * 15), b"\xff" * 16, bytes(range(16))]
    digests += [b"\x00\xff" * 8, b"\n\r\t " * 4]
    samples["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(n, 16)

    evidence_of_step = deserialize(as_sent(serialize(of_rank(0, (2**62, 2**53 + 1)), samples)))
    assert evidence_of_step.ranks.tolist() == [(0, 2**62, 2**53 + 1)]
    assert evidence_of_step.samples.tobytes() == samples.tobytes()
    reading = evidence_of_step.reading(0, Order(kind="sequential", seed=0, n=100, batch_size=n))
    assert reading.losses.view(np.uint32).tolist() == list(ODD_LOSSES)
    assert reading.digests == digests
    assert reading.sample_ids.tolist() == [2**40 + k * (2**22 + 1) for k in range(n)]
    assert (reading.sample_ids.dtype, reading.losses.dtype) == (np.dtype(np.int64), np.dtype(np.float32))


def test_samples_of_all_ranks_are_put_in_slot_order() -> None:
    """Four slots over two ranks; the second batch of 4 out of 6 samples, so half of it is from the next epoch."""
    first = np.concatenate([sample(slot=3, sample_id=1), sample(slot=0, sample_id=4)])
    second = np.concatenate([sample(slot=2, sample_id=0), sample(slot=1, sample_id=5)])
    evidence_of_step = deserialize(
        as_sent(serialize(of_rank(0, (7, 1)), first), serialize(of_rank(12, (9, 2)), second))
    )
    reading = evidence_of_step.reading(1, Order(kind="sequential", seed=0, n=6, batch_size=4))
    assert reading.batch_id == 1
    assert reading.sample_ids.tolist() == [4, 5, 0, 1]
    assert reading.epochs.tolist() == [0, 0, 1, 1]
    assert not reading.skipped
    assert evidence_of_step.stop_signal == 12
    assert evidence_of_step.ranks["host_peak"].tolist() == [7, 9]


def test_stop_signal_is_0_without_a_request_to_stop() -> None:
    assert deserialize(as_sent(*[serialize(of_rank(0, (1, 1)), sample())] * 2)).stop_signal == 0


# --- from tensors


def test_report_of_a_micro_batch_is_measured_on_its_tensors() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9, 0, 0]])
    targets = torch.zeros_like(tokens, dtype=torch.bool)
    targets[0, 1:4], targets[1, 5] = True, True
    batch = Batch(torch.tensor([2**40, 3]), torch.tensor([4, 6]), tokens, targets)
    rows = of_micro_batch(np.array([6, 2]), batch, torch.tensor([1.0, float("nan")], dtype=torch.bfloat16))
    assert rows["slot"].tolist() == [6, 2]
    assert rows["sample_id"].tolist() == [2**40, 3]
    assert rows["n_tokens"].tolist() == [4, 6]
    assert rows["n_targets"].tolist() == [3, 1]
    assert rows["width"].tolist() == [8, 8]
    assert rows["loss"][0] == np.float32(1) / np.float32(3)
    assert np.isnan(rows["loss"][1])
    assert [row.tobytes() for row in rows["digest"]] == [
        digest(np.array([5, 6, 7, 8]), np.array([0, 1, 1, 1], bool)),
        digest(np.full(6, 9), np.array([0, 0, 0, 0, 0, 1], bool)),
    ]


def test_rank_with_another_number_of_samples_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AssertionError, match="read 3 samples, its share of the batch is 2"):
        evidence.gather(of_rank(0, (0, 0)), np.zeros(3, SAMPLE), batch_size=4)


def _exchange(rank: int, meeting: Path) -> None:
    import os

    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    calls = []
    gather = ranks.gather
    ranks.gather = lambda rows, **to: calls.append(rows.shape) or gather(rows, **to)  # type: ignore[func-returns-value]
    share = np.concatenate([sample(slot=slot, sample_id=2**40 + slot, loss=-0.0) for slot in (3 - rank, rank)])
    gathered = evidence.gather(of_rank(10 * rank, (rank, 0)), share, batch_size=4)
    assert calls == [(1, 24 + 2 * 60)]
    assert gathered.samples["sample_id"].tolist() == [2**40 + slot for slot in range(4)]
    assert np.signbit(gathered.samples["loss"]).all()
    assert gathered.ranks.tolist() == [(0, 0, 0), (10, 1, 0)]
    assert gathered.stop_signal == 10
    dist.barrier()


@pytest.mark.slow
def test_two_ranks_exchange_all_in_one_collective(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_exchange, (tmp_path / "meeting",), nprocs=2)
