"""Secrets in cluster files: they are neither copied into a run nor printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.programs import Program

from launch import snapshot
from wellread import provenance
from wellread.run import RunDirectory


@pytest.mark.parametrize("in_git", [True, False])
def test_a_cluster_file_of_the_user_does_not_travel(
    in_git: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, run = tmp_path / "tree", RunDirectory(tmp_path / "run")
    run.path.mkdir()
    clusters = tree / "configs" / "clusters"
    clusters.mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", tree)
    for name in ("local.yaml", "slurm.yaml"):
        (clusters / name).write_text("kind: local\n")
    if in_git:
        for arguments in (("init", "--quiet"), ("add", "--all")):
            subprocess.run(["git", "-C", str(tree), *arguments], check=True)
    for name in ("mine.yaml", "mine.txt"):
        (clusters / name).write_text("environment: {WANDB_API_KEY: hush-hush}\n")
    (tree / "configs" / "mine.yaml").write_text("a: 1\n")
    assert snapshot.take(run, tmp_path / "corpora") == []
    copied = [path.relative_to(run.code / "configs") for path in run.code.rglob("*.*") if path.suffix != ".json"]
    assert sorted(map(str, copied)) == ["clusters/local.yaml", "clusters/slurm.yaml", "mine.yaml"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_plan_shows_no_secret_of_the_cluster_file(in_process: Program, tmp_path: Path, flags: list[str]) -> None:
    cluster = tmp_path / "mine.yaml"
    cluster.write_text("kind: slurm\nenvironment: {WANDB_API_KEY: hush-hush, WANDB_MODE: offline}\n")
    plan = in_process("launch", "plan", "finetune", "--cluster", cluster, *flags, check=True).stdout
    assert "hush-hush" not in plan
    assert "[secret]" in plan
    assert "offline" in plan
