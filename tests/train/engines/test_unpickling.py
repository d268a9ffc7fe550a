"""Files of a state are loaded without executing what they contain; DeepSpeed's own classes still load."""

from __future__ import annotations

import enum
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wellread.errors import UserError
from wellread.train.engines import moments
from wellread.train.engines.unpickling import OPPOSITE, SWITCH, allowed, restricted, restricted_loading

NAMES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
REASON = r"state: contains (posix\.system|objects of another program), which is not part .* --model \S+/model$"


class Malicious:
    """A pickle of it creates a file when it is loaded without restriction."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def malicious(tmp_path: Path) -> tuple[Path, Path]:
    """A state in which each of DeepSpeed's files would create a marker; the marker."""
    state, marker = tmp_path / "checkpoint/state", tmp_path / "marker"
    (state / moments.ZERO).mkdir(parents=True)
    for name in NAMES:
        torch.save({"optimizer_state_dict": Malicious(marker)}, state / moments.ZERO / name)
    torch.save({"optimizer": Malicious(marker), "names": []}, state / moments.OPTIMIZER_FILE)
    return state, marker


def test_an_unrestricted_load_would_execute_the_file(malicious: tuple[Path, Path]) -> None:
    state, marker = malicious
    torch.load(state / moments.ZERO / NAMES[0], weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_loader_of_deepspeed_executes_nothing(malicious: tuple[Path, Path], name: str) -> None:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    state, marker = malicious
    with pytest.raises(UserError, match=REASON), restricted_loading(state):
        TorchCheckpointEngine().load(str(state / moments.ZERO / name))  # type: ignore[no-untyped-call]
    assert not marker.exists()


def test_the_optimizer_file_of_torch_executes_nothing(malicious: tuple[Path, Path]) -> None:
    state, marker = malicious
    with pytest.raises(UserError, match=REASON):
        moments.read(state, state)
    assert not marker.exists()


@pytest.mark.slow
def test_the_converter_executes_nothing(malicious: tuple[Path, Path], tmp_path: Path) -> None:
    state, marker = malicious
    (state / moments.OPTIMIZER_FILE).unlink()
    with pytest.raises(UserError, match=REASON):
        moments.convert(state, tmp_path / "converted")
    shutil.copyfile(state / moments.ZERO / NAMES[1], state / moments.ZERO / f"bf16_{NAMES[1]}")
    with pytest.raises(UserError, match=REASON):
        moments.convert(state, tmp_path / "converted")
    assert not marker.exists()


def test_the_classes_of_deepspeed_load(tmp_path: Path) -> None:
    stage, scaler, fragment = allowed()
    assert issubclass(stage, enum.Enum)
    values: dict[str, Any] = {"stage": stage(2), "scaler": scaler(1.0), "fragment": fragment(numel=3, start=4)}
    (tmp_path / moments.ZERO).mkdir()
    torch.save(values, tmp_path / moments.ZERO / NAMES[1])
    with restricted_loading(tmp_path):
        loaded = torch.load(tmp_path / moments.ZERO / NAMES[1], weights_only=False)
    assert loaded["stage"] is stage(2)
    assert loaded["scaler"].cur_scale == 1.0
    assert (loaded["fragment"].numel, loaded["fragment"].start) == (3, 4)


def test_only_the_block_is_restricted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv(OPPOSITE, "1")
    with restricted_loading(tmp_path):
        assert os.environ[SWITCH] == "1"
        assert OPPOSITE not in os.environ
    assert os.environ[OPPOSITE] == "1"
    assert SWITCH not in os.environ
    assert restricted({OPPOSITE: "1", "PATH": "/bin"}) == {"PATH": "/bin", SWITCH: "1"}
