"""The comparison with other trainers: equal losses of every sample, and rows that say why they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_models import tiny

from bench import sft
from bench.peers.losses import (
    LARGEST,
    MEDIAN,
    Losses,
    Reading,
    Scored,
    distances,
    keep,
    read,
    samples_of,
    why_different,
    write,
)
from bench.peers.training import Epoch, training_arguments
from bench.peers.work import Work
from bench.trainer import Peer, line
from wellread.corpus.digest import digest

WORK = Work("tiny", "zero2", 1, 16, 8, 512, 64)
THEIRS: Losses = {"a": Scored(2, 4.0), "b": Scored(6, 18.0)}


def test_a_packed_row_is_the_mean_over_the_scored_tokens_of_its_samples() -> None:
    recorded = [Reading(("a",), 2.0), Reading(("a", "b"), 2.75)]
    assert distances(recorded, THEIRS).tolist() == [0, 0]
    assert why_different(recorded, THEIRS) is None


def test_one_sample_that_differs_is_a_reason_and_so_is_the_median() -> None:
    one = [Reading(("a",), 2.0)] * 9 + [Reading(("b",), 3 + 2 * LARGEST)]
    assert "by up to 0.0200 nats, by a median of 0.0000" in str(why_different(one, THEIRS))
    assert "by a median of 0.0020" in str(why_different([Reading(("a",), 2 + 2 * MEDIAN)] * 3, THEIRS))
    assert why_different([Reading(("a",), 2 + MEDIAN / 2), Reading(("b",), 3 - MEDIAN / 2)], THEIRS) is None


def test_samples_with_other_tokens_or_masks_are_a_reason() -> None:
    unread = [Reading(("a",), 2.0), Reading(("b", "c"), 3.0)]
    assert str(why_different(unread, THEIRS)).startswith("1 of 2 samples were not read by the peer")
    assert why_different([], THEIRS)


def test_samples_of_a_packed_row() -> None:
    tokens = np.array([5, 6, 7, 8, 9, 0])
    labels = np.array([-100, 6, 7, -100, 9, -100])
    scores = dict(samples_of(tokens, labels, np.array([1, 2, 50, 4, 50], np.float32), [0, 3, 5]))
    first, second = digest(tokens[:3], [False, True, True]).hex(), digest(tokens[3:5], [False, True]).hex()
    assert scores == {first: Scored(2, 3.0), second: Scored(1, 4.0)}


def test_losses_are_kept_of_padded_and_of_packed_rows(tmp_path: Path) -> None:
    model: Any = tiny("gpt_neox").eval()
    tokens = torch.randint(1, 101, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, 0] = labels[1, 4:] = -100
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    padded: Losses = {}
    keep(model, padded)
    model(input_ids=tokens, labels=labels, attention_mask=mask)
    logits = model(input_ids=tokens, labels=labels, attention_mask=mask).logits
    expected = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum").item()
    assert padded[digest(tokens[0].numpy(), labels[0].numpy() != -100).hex()].total == pytest.approx(expected, abs=1e-4)
    rows = {name: torch.cat([each[0], each[1, :4]])[None] for name, each in (("ids", tokens), ("labels", labels))}
    positions = torch.tensor([[*range(6), *range(4)]])
    packed: Losses = {}
    other: Any = tiny("gpt_neox").eval()
    other.load_state_dict(model.state_dict())
    keep(other, packed)
    other(input_ids=rows["ids"], labels=rows["labels"], position_ids=positions, use_cache=False)
    write(packed, tmp_path / "losses-0.json")
    assert read(tmp_path) == packed
    assert packed.keys() == padded.keys()
    recorded = [Reading((name,), scored.total / scored.n) for name, scored in padded.items()]
    assert distances(recorded, packed).max() < 1e-4


def test_the_command_of_a_peer_describes_its_epoch(tmp_path: Path) -> None:
    command = Peer("TRL packed", "bench.sft", packed=True).command(WORK, tmp_path, compared=True)
    words = command[command.index("peer") + 1 :]
    epoch = Epoch.of(words)
    assert epoch == Epoch(WORK, tmp_path, packed=True, compared=True)
    assert (
        training_arguments(epoch)["learning_rate"] < 1e-20 < training_arguments(Epoch(WORK, tmp_path))["learning_rate"]
    )


def test_only_the_peers_process_gets_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    plain, packed = sft.peers(tmp_path)
    assert plain.variables(1)["PYTHONPATH"] == packed.variables(1)["PYTHONPATH"] == str(tmp_path)
    assert "PYTHONPATH" not in sft.peers(None)[0].variables(1)


def test_packing_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "packed_batch", lambda *_: 6)
    arguments = sft.sft_arguments(Epoch(WORK, tmp_path, packed=True))
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (1, 6)
    assert (arguments["packing"], arguments["packing_strategy"]) == (True, "bfd")
    assert "packing" not in sft.sft_arguments(Epoch(WORK, tmp_path))


def test_without_trl_the_rows_say_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert sft.version(None) is None
    assert sft.version(tmp_path) is None
    lines = [line(row, sft.GOALS) for row in sft.without_trl()]
    assert [each.split("missing: ")[1] for each in lines] == [
        "TRL is not installed; give --trl DIR, after pip install --no-deps --target DIR trl"
    ] * 2
    info = tmp_path / "trl-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.0\n")
    assert sft.version(tmp_path) == "1.0"


def test_a_peer_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import trainer

    def failed(*_: Any, **__: Any) -> None:
        raise RuntimeError("python -m x: failed, code 1\nTraceback\nValueError: no")

    monkeypatch.setattr(trainer, "call", failed)
    peer = Peer("TRL", "bench.sft")
    reason = trainer.Comparison(WORK, tmp_path).why_missing(peer, packed=False)
    assert reason == "TRL has failed: ValueError: no"
