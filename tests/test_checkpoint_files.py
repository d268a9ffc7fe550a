"""Files of a checkpoint against its manifest: what verify names, and evaluations refuse before they read a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from wellread.checkpoint import Checkpoint, commit, drop_old_states, list_checkpoints, staging
from wellread.errors import UserError


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    return save(tmp_path, 4)


def save(directory: Path, step: int) -> Checkpoint:
    source = staging(directory, step)
    for name in ("model/model.safetensors", "model/config.json", "state/optimizer.pt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    return commit(directory, step, {"step": step})


@pytest.mark.parametrize("name", ["model/adapter_model.safetensors", "state/more.pt", "new/.hidden", "model/a/b.json"])
def test_a_file_that_the_manifest_does_not_list_is_named(saved: Checkpoint, name: str) -> None:
    (saved.path / name).parent.mkdir(parents=True, exist_ok=True)
    (saved.path / name).write_text("foreign")
    assert saved.damage() == f"{saved.path / name}: not listed in checkpoint.json; remove it"
    with pytest.raises(UserError, match="not listed in checkpoint"):
        saved.refuse_damaged(saved.path.parent / "hashes.json")
    (saved.path / name).unlink()
    assert saved.damage() is None


@pytest.mark.parametrize("target", [".", "checkpoint.json", "missing"])
def test_links_are_named(saved: Checkpoint, target: str) -> None:
    (saved.path / "model" / "link").symlink_to(saved.path / target)
    assert saved.damage() == f"{saved.path / 'model/link'}: not listed in checkpoint.json; remove it"
    (saved.path / "model" / "link").unlink()
    weights = saved.path / "model/model.safetensors"
    weights.rename(saved.path.parent / "elsewhere")
    weights.symlink_to(saved.path.parent / "elsewhere")
    assert saved.damage() == f"{weights}: is a link, the manifest lists a file"


@pytest.mark.parametrize("files", [None, {}, [], {"state/optimizer.pt": {"size": 1, "sha256": "0"}}])
def test_a_manifest_without_weights_is_named(saved: Checkpoint, files: object) -> None:
    damage = Checkpoint(saved.path, saved.manifest | {"files": files}).damage()
    assert damage == f"{saved.path / 'checkpoint.json'}: files: lists no weights in model/"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "model/../../outside"])
def test_a_name_outside_the_checkpoint_is_named(saved: Checkpoint, name: str) -> None:
    files = saved.manifest["files"] | {name: {"size": 1, "sha256": "0"}}
    damage = Checkpoint(saved.path, saved.manifest | {"files": files}).damage()
    assert repr(name) in str(damage)


def test_files_are_hashed_once_and_again_when_they_change(saved: Checkpoint) -> None:
    weights, hashes = saved.model / "model.safetensors", saved.path.parent / "eval" / "hashes.json"
    saved.refuse_damaged(hashes)
    status = weights.stat()
    entry = json.loads(hashes.read_text())["model/model.safetensors"]
    assert entry["file"] == [status.st_size, status.st_mtime_ns, status.st_ino]
    assert entry["sha256"] == saved.manifest["files"]["model/model.safetensors"]["sha256"]
    altered = weights.read_bytes()[::-1]
    with open(weights, "r+b") as file:
        file.write(altered)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    saved.refuse_damaged(hashes)  # same size, time and inode
    with pytest.raises(UserError, match="altered"):
        saved.refuse_damaged(hashes, again=True)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match="altered"):
        saved.refuse_damaged(hashes)


@pytest.mark.parametrize("text", ["", "[]", '{"model/model.safetensors": 3}', "\x00"])
def test_damaged_hashes_are_computed_again(saved: Checkpoint, text: str) -> None:
    hashes = saved.path.parent / "hashes.json"
    hashes.write_text(text)
    saved.refuse_damaged(hashes)
    assert len(json.loads(hashes.read_text())) == 2


@pytest.mark.parametrize(("damaged", "expected"), [(12, [8, 12]), (4, [4, 8])])
def test_damaged_checkpoints_do_not_count_as_states(saved: Checkpoint, damaged: int, expected: list[int]) -> None:
    """Whether training has passed them again or not: one state is kept from which it can continue."""
    directory = saved.path.parent
    for step in {8, damaged} - {saved.step}:
        save(directory, step)
    drop_old_states(directory, 1, {f"step-{damaged:08d}"})
    assert [checkpoint.step for checkpoint in list_checkpoints(directory) if checkpoint.resumable] == expected


def test_a_crash_while_a_state_is_deleted_leaves_a_valid_checkpoint(saved: Checkpoint) -> None:
    content = (saved.path / "state/optimizer.pt").read_bytes()
    save(saved.path.parent, 8)
    drop_old_states(saved.path.parent, 1)
    dropped, _ = list_checkpoints(saved.path.parent)
    assert dropped.damage() is None
    assert not dropped.resumable
    assert list(dropped.manifest["dropped"]) == ["state/optimizer.pt"]
    dropped.state.mkdir()
    (dropped.state / "optimizer.pt").write_bytes(content)
    (dropped.path / ".checkpoint.json.17.tmp").write_text("")
    assert dropped.damage() is None
    saved.refuse_damaged(saved.path.parent / "hashes.json")  # opened before the state was deleted
