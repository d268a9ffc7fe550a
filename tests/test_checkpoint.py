"""Checkpoints: complete or missing, never partial; damage is reported; resuming uses the newest valid one."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from support.programs import Program

from wellread.checkpoint import (
    Checkpoint,
    clear_staging,
    commit,
    list_checkpoints,
    name_of,
    newest_valid,
    staging,
)
from wellread.files import full_disk_named
from wellread.run import RunDirectory


def save(directory: Path, step: int, *, weights: bytes = b"weights") -> Checkpoint:
    source = staging(directory, step)
    (source / "model").mkdir(parents=True)
    (source / "state" / "zero").mkdir(parents=True)
    (source / "model" / "model.safetensors").write_bytes(weights)
    (source / "state" / "zero" / "rank.pt").write_bytes(b"state")
    manifest = {
        "step": step,
        "tokens": 100 * step,
        "record": {"head": f"{step:064x}", "batches": [max(0, step - 4), step]},
    }
    return commit(directory, step, manifest)


def test_the_content_of_a_checkpoint(tmp_path: Path) -> None:
    saved = save(tmp_path, 8)
    assert saved.path == tmp_path / "step-00000008" == tmp_path / name_of(8)
    assert sorted(str(p.relative_to(saved.path)) for p in saved.path.rglob("*") if p.is_file()) == [
        "checkpoint.json", "model/model.safetensors", "state/zero/rank.pt",
    ]  # fmt: skip
    (checkpoint,) = list_checkpoints(tmp_path)
    assert checkpoint == saved
    assert (checkpoint.step, checkpoint.tokens, checkpoint.head, checkpoint.batches) == (8, 800, f"{8:064x}", (4, 8))
    assert (checkpoint.model, checkpoint.state) == (saved.path / "model", saved.path / "state")
    assert json.loads((saved.path / "checkpoint.json").read_text())["files"]["state/zero/rank.pt"] == {
        "size": 5,
        "sha256": "4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e",
    }
    assert checkpoint.damage() is None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008"]


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (12, 0, 4):
        save(tmp_path, step)
    (tmp_path / "step-later").mkdir()
    (tmp_path / "step-00000020").mkdir()  # without a manifest it is not a checkpoint
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [0, 4, 12]
    assert list_checkpoints(tmp_path / "nowhere") == []


def damage_by_truncation(path: Path) -> str:
    os.truncate(path / "model" / "model.safetensors", 3)
    return f"{path / 'model' / 'model.safetensors'}: 3 bytes, the manifest says 7"


def damage_by_one_bit(path: Path) -> str:
    (path / "model" / "model.safetensors").write_bytes(b"weightz")
    return f"{path / 'model' / 'model.safetensors'}: altered (its sha256 is not the manifest's)"


def damage_by_loss(path: Path) -> str:
    (path / "state" / "zero" / "rank.pt").unlink()
    return f"{path / 'state' / 'zero' / 'rank.pt'}: missing"


def damage_of_manifest(path: Path) -> str:
    (path / "checkpoint.json").write_text('{"step": 8, "tok')
    return f"{path / 'checkpoint.json'}: missing or damaged"


def damage_of_manifest_beyond_text(path: Path) -> str:
    (path / "checkpoint.json").write_bytes(b"\xff\xfe\x00")
    return f"{path / 'checkpoint.json'}: missing or damaged"


def damage_by_lost_manifest(path: Path) -> str:
    (path / "checkpoint.json").unlink()
    return f"{path / 'checkpoint.json'}: missing or damaged"


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_truncation,
        damage_by_one_bit,
        damage_by_loss,
        damage_of_manifest,
        damage_of_manifest_beyond_text,
        damage_by_lost_manifest,
    ],
)
def test_damaged_checkpoints_are_skipped_and_reported(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for step in (0, 4, 8):
        save(tmp_path, step)
    line = damage(tmp_path / "step-00000008")
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert skipped == {"step-00000008": line}


def test_all_damaged(tmp_path: Path) -> None:
    for step in (0, 4):
        damage_by_one_bit(save(tmp_path, step).path)
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is None
    assert list(skipped) == ["step-00000004", "step-00000000"]
    assert all(line.startswith(str(tmp_path / name)) for name, line in skipped.items())
    assert newest_valid(tmp_path / "nowhere") == (None, {})


def test_an_interrupted_save_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (staging(tmp_path, 8) / "model").mkdir(parents=True)
    (staging(tmp_path, 8) / "model" / "model.safetensors").write_bytes(b"hal")
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (4, {})
    clear_staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_a_damaged_checkpoint_is_replaced(tmp_path: Path) -> None:
    damage_by_one_bit(save(tmp_path, 4).path)
    save(tmp_path, 4, weights=b"new")
    (checkpoint,) = list_checkpoints(tmp_path)
    assert checkpoint.damage() is None
    assert (checkpoint.model / "model.safetensors").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_a_failed_commit_keeps_the_other_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 4)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 8)
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (4, {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter: No space left on device"),
        Exception("Error while serializing: IoError(Os { code: 28, kind: StorageFull })  (os error 28)"),
    ],
)
def test_a_full_disk_is_always_the_same_error(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error_info, full_disk_named(tmp_path):
        raise error
    assert (error_info.value.errno, error_info.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert error_info.value.__cause__ is error


def test_other_errors_are_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), full_disk_named(tmp_path):
        raise RuntimeError("shapes differ")


@pytest.mark.slow
def test_checkpoints_of_a_real_run(tiny_run: RunDirectory) -> None:
    from safetensors import safe_open

    checkpoints = list_checkpoints(tiny_run.checkpoints)
    assert [c.step for c in checkpoints] == [0, 4, 8, 12]
    assert [c.batches for c in checkpoints] == [(0, 0), (0, 4), (4, 8), (8, 12)]
    assert all(c.damage() is None for c in checkpoints)
    assert checkpoints[0].tokens == 0
    assert len({c.head for c in checkpoints}) == 4
    with safe_open(checkpoints[3].model / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F32"}  # noqa: SIM118


@pytest.mark.slow
def test_a_real_run_with_a_damaged_checkpoint(copied_run: RunDirectory) -> None:
    shutil.rmtree(copied_run.checkpoints / name_of(8) / "state")
    os.truncate(copied_run.checkpoints / name_of(12) / "model" / "model.safetensors", 1000)
    checkpoint, skipped = newest_valid(copied_run.checkpoints)
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert [line.rpartition("/")[2].partition(":")[0] for line in skipped.values()] == [
        "model.safetensors",
        "optimizer.pt",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["states", "files added"])
def test_a_run_that_cannot_be_resumed_keeps_what_it_has(
    program: Program, copied_run: RunDirectory, corpora: Path, lost: str
) -> None:
    """A new start from step 0 would delete the record, and overwrite the checkpoints."""
    for checkpoint in list_checkpoints(copied_run.checkpoints):
        if lost == "states":
            shutil.rmtree(checkpoint.state)
        else:
            (checkpoint.model / ".DS_Store").write_text("")
    before = {path: path.read_bytes() for path in copied_run.record.iterdir()}
    flags = ["--steps", 12, "--save_every", 4, "--keep_states", 4, "--ranks_per_node", 2, "--generations", 0]
    result = program("launch", "run", "finetune", *flags, "--corpora", corpora, "--out", copied_run.path)
    assert result.returncode == 2, result.stderr
    assert f"{copied_run.checkpoints}: no checkpoint can be resumed (" in result.stderr
    assert {path: path.read_bytes() for path in copied_run.record.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "problem"), [(b"{", b"[", "damaged ("), (b'"step": 8', b'"step": 9', "step: step-00000009")]
)
def test_a_damaged_manifest_fails_verification(
    in_process: Program, copied_run: RunDirectory, before: bytes, after: bytes, problem: str
) -> None:
    manifest = copied_run.checkpoints / name_of(8) / "checkpoint.json"
    manifest.write_bytes(manifest.read_bytes().replace(before, after, 1))
    result = in_process("eval", "verify", copied_run.path)
    assert result.returncode == 1
    assert f"{manifest}: {problem}" in result.stdout
