"""The code in the documents runs, and its numbers equal those of the library."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import cluster
from wellread.corpus.digest import digest
from wellread.order.permutation import Order
from wellread.run import RunDirectory


def code(document: Path) -> list[str]:
    """Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def formats(root: Path) -> list[str]:
    blocks = code(root / "docs" / "formats.md")
    assert len(blocks) == 2
    return blocks


@pytest.mark.parametrize(("seed", "n"), [(0, 518), (7, 1), (2**64 - 1, 5), (3, 99_991)])
def test_the_order_as_documented(seed: int, n: int, formats: list[str]) -> None:
    names: dict[str, Any] = {}
    exec(formats[0], names)
    order = Order(kind="shuffle", seed=seed, n=n, batch_size=16)
    for batch_id in (0, 1, 40, 9999):
        documented = [names["sample"](batch_id, slot, seed=seed, n=n, batch_size=16) for slot in range(16)]
        assert documented == order.batch(batch_id).tolist()


def test_the_examples_as_documented(root: Path) -> None:
    text = (root / "docs" / "formats.md").read_text()
    example = digest(np.array([5, 6, 7]), np.array([False, True, True]))
    assert f"`{example.hex()}`" in text
    first = Order(kind="shuffle", seed=0, n=518, batch_size=16).batch(0)
    assert f"batch 0 holds the samples {', '.join(map(str, first))}." in " ".join(text.split())


@pytest.mark.slow
def test_the_verifier_as_documented(formats: list[str], copied_run: RunDirectory, tmp_path: Path) -> None:
    script = tmp_path / "verify_chain.py"
    script.write_text(formats[1])

    def verify() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-I", str(script), str(copied_run.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = verify()
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"12 batches, head [0-9a-f]{64}, 4 checkpoints agree\n", result.stdout)
    manifest = copied_run.checkpoints / "step-00000008" / "checkpoint.json"
    text = manifest.read_text()
    head = re.search(r'"head": "([0-9a-f]{64})"', text)
    assert head
    manifest.write_text(text.replace(head[1], "0" * 64))
    assert "checkpoint at step 8 names another head" in verify().stderr


@pytest.mark.slow
def test_the_snippet_of_the_readme(root: Path, tiny_run: RunDirectory, tmp_path: Path) -> None:
    (snippet,) = code(root / "README.md")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny-sample").symlink_to(tiny_run.path)
    snippet = snippet.replace("batch(137)", "batch(11)")  # the run of the tests is shorter
    result = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "### Response:" in result.stdout
    assert re.search(r"\(11, \d+\)\]$", result.stdout.strip())


def test_the_cluster_files_as_documented(root: Path, tmp_path: Path) -> None:
    text = (root / "docs" / "clusters.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(block)
    clusters = [cluster.load(str(tmp_path / f"{number}.yaml")) for number in range(len(blocks))]
    assert [file.kind for file in clusters] == ["slurm", "hostfile"]
    assert blocks[0].count("\n") <= 10  # ten lines, as the heading says
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(
        field.name for field in fields(cluster.ClusterFile) if field.name not in ("name", "path", "whole_job")
    )


def test_links_lead_to_files(root: Path) -> None:
    broken = [
        f"{document.relative_to(root)}: {target}"
        for folder in (".", "docs", "configs/ds", "scripts", "examples")
        for document in (root / folder).glob("*.md")
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not broken


def test_files_named_in_the_documents_exist(root: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text() + (root / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"`((?:wellread|launch|finetune|pretrain|eval|configs|tests|docs|\.ci)/[\w./*]*)`", text))
    assert len(names) > 30
    assert not [name for name in names if not list(root.glob(name.rstrip("/")))]


def test_the_layers_are_those_of_the_contract(root: Path) -> None:
    """The table of docs/architecture.md, against import-linter's layers, which are listed from the top."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    checked = {
        name.removeprefix("wellread."): number
        for number, layer in enumerate(reversed(layers), 1)
        for name in layer.split(" | ")
    }
    rows = re.findall(r"^\| (\d+) \| (`.+?) \|", (root / "docs" / "architecture.md").read_text(), re.MULTILINE)
    table = {
        name.removesuffix("/").removesuffix(".py"): int(number)
        for number, names in rows
        for name in re.findall(r"`([\w/.]+)`", names)
    }
    assert table == checked


def test_the_documented_commands_exist(root: Path) -> None:
    text = (root / "README.md").read_text() + (root / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^ *make ([a-z-]+)", text, re.MULTILINE))
    rules = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert {"ft", "test", "setup", "verify"} <= targets <= rules
    assert shutil.which("make")


def test_the_documented_commands_of_wellread_exist(root: Path) -> None:
    from wellread.__main__ import COMMANDS

    text = "\n".join(path.read_text() for path in (root / "README.md", *root.glob("docs/*.md")))
    lines = re.findall(r"^(?:    |\$ )wellread (\w+)(?: (\w+))?", text, re.MULTILINE)
    lines += re.findall(r"`wellread (\w+)(?: ([a-z]\w+))?", text)
    assert {name for name, _ in lines} - {"COMMAND"} == set(COMMANDS)
    kinds = {name: command.kinds for name, command in COMMANDS.items() if command.kinds}
    assert not [(name, kind) for name, kind in lines if kind and kind not in kinds.get(name, (kind,))]


def test_each_command_has_one_row(root: Path) -> None:
    rows = re.findall(r"^\| `wellread (.+?)` \|", (root / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    assert [row for row, times in Counter(re.sub(r" \[.*?\]", "", row) for row in rows).items() if times > 1] == []
