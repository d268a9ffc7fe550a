"""Whatever reads the model of a checkpoint refuses a checkpoint that verify would name, through the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tampering import Change, added, flipped, json_value, removed, stale, written
from support.whole_runs import OLD

from eval.registry import per_checkpoint
from wellread.__main__ import main
from wellread.errors import BAD_INPUT, UserError
from wellread.record.verify import verify
from wellread.run import RunDirectory

LAST = "checkpoints/last/"
MANIFEST = LAST + "checkpoint.json"
WEIGHTS = LAST + "model/model.safetensors"


def linked(run: RunDirectory) -> None:
    """Replace the newest weights by a link to the same bytes."""
    path = max(run.checkpoints.glob("step-*")) / "model" / "model.safetensors"
    path.rename(run.path / "elsewhere")
    path.symlink_to(run.path / "elsewhere")


EVALUATIONS = [name for name in per_checkpoint() if name not in ("forgetting", "canaries", "marks")]
"""Without those that need sealed losses, canaries or marks; the old run has none. They read models in the same way."""

CHANGES: dict[str, tuple[Change, str]] = {
    "adapter": (written(LAST + "model/adapter_model.safetensors"), "adapter_model.safetensors: not listed"),
    "code": (written(LAST + "model/modeling_x.py"), "modeling_x.py: not listed"),
    "state": (written(LAST + "state/more.pt"), "more.pt: not listed"),
    "hidden file": (written(LAST + "model/.x"), ".x: not listed"),
    "weights": (flipped(WEIGHTS), "model.safetensors: altered"),
    "shorter weights": (written(WEIGHTS), "7 bytes, the manifest says"),
    "config": (flipped(LAST + "model/config.json"), "config.json: altered"),
    "tokenizer": (removed(LAST + "model/tokenizer.json"), "tokenizer.json: missing"),
    "link": (linked, "a link"),
    "no files": (json_value(MANIFEST, "files", {}), "lists no weights"),
    "listed only as dropped": (added("model/x.py", "dropped"), "x.py: not listed"),
    "outside": (json_value(MANIFEST, "files", lambda v: v | {"../x": {"size": 1, "sha256": ""}}), "outside"),
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    shutil.copytree(OLD / "finetune" / "run", tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


Answer = Callable[..., tuple[int, str]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    def ask(*words: object) -> tuple[int, str]:
        try:
            code = main([str(word) for word in words])
        except UserError as error:  # the program prints it and exits 2
            return BAD_INPUT, str(error)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return ask


def forget(run: RunDirectory) -> None:
    """Remove what evaluations keep of a checkpoint, but not the hashes of its files."""
    for folder in (run.eval / "tokens", run.eval / "generations"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_an_evaluation_refuses_what_verify_names(evaluation: str, name: str, run: RunDirectory, answer: Answer) -> None:
    change, line = CHANGES[name]
    change(run)
    assert any(line in problem for problem in verify(run))
    code, text = answer(evaluation, run.path, "--steps", 10)
    assert (code, line in text, "\n" in text) == (BAD_INPUT, True, False), text
    assert not list(run.eval.rglob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_hashes_are_kept_and_computed_again(evaluation: str, run: RunDirectory, answer: Answer) -> None:
    words = [evaluation, run.path, "--steps", 10, "--max_samples", 4]
    code, text = answer(*words)
    assert code == 0, text
    assert len(json.loads((run.eval / "hashes" / "step-00000010.json").read_text())) >= 4
    weights = run.checkpoints / "step-00000010" / "model" / "model.safetensors"
    content, status = weights.read_bytes(), weights.stat()
    with open(weights, "r+b") as file:
        file.seek(len(content) - 1)
        file.write(bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    forget(run)
    assert answer(*words)[0] == 0  # same size, time and inode: docs/trust.md says so
    code, text = answer(*words, "--verify")
    assert (code, "model.safetensors: altered" in text) == (BAD_INPUT, True)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    forget(run)
    assert answer(*words)[0] == BAD_INPUT
    weights.write_bytes(content)
    assert answer(*words, "--verify")[0] == 0


@pytest.mark.parametrize("command", ["sample", "export"])
@pytest.mark.parametrize("name", ["adapter", "weights", "no files"])
@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_sample_and_export_refuse_it_too(command: str, name: str, kind: str, tmp_path: Path, answer: Answer) -> None:
    shutil.copytree(OLD / kind / "run", tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    change, line = CHANGES[name]
    change(run)
    words = {"sample": ["once"], "export": ["--out", tmp_path / "out"]}[command]
    if kind == "finetune" and command == "export":
        words += ["--merged"]
    code, text = answer(command, run.path, *words)
    assert (code, line in text) == (BAD_INPUT, True), text


def test_an_altered_manifest_is_refused(tmp_path: Path, answer: Answer) -> None:
    from support.whole_runs import make

    run = make("packed", tmp_path / "run")
    stale(MANIFEST, "holdout_loss", 1.0)(run)
    code, text = answer("membership", run.path, "--steps", 6)
    assert (code, "checkpoint.json: altered" in text) == (BAD_INPUT, True), text
