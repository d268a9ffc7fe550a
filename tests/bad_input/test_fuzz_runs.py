"""Damaged runs, as all commands see them that open a run: never a traceback; one line that names what and where.

`test_fuzz.py` asks status, read and verify; this file asks the others. Each opens a run in another order, so that
the first file that it misses differs.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.damaged import CONTENTS, OLD, damaged, faults

_FEW = ("--steps", "8", "--max_samples", "20")
COMMANDS: dict[str, tuple[str, ...]] = {
    "logs": ("logs", "RUN"),
    "cancel": ("cancel", "RUN"),
    "membership": ("membership", "RUN", *_FEW, "--scores", "loss", "--bootstrap", "100"),
    "forgetting": ("forgetting", "RUN", "--steps", "8"),
    "memorization": ("memorization", "RUN", *_FEW),
    "canaries": ("canaries", "RUN"),
    "marks": ("marks", "RUN"),
    "generations": ("generations", "RUN", "--steps", "8", "--prompts", "2", "--new_tokens", "2"),
    "saturation": ("saturation", "RUN"),
    "trace": ("trace", "RUN", "the river runs to the sea and then it ends"),
    "index": ("index", "RUN"),
    "report": ("report", "RUN"),
    "sample": ("sample", "RUN", "a river", "--tokens", "2"),
    "export": ("export", "RUN", "--out", "RUN-exported"),
    "plan": ("plan", *shlex.split((OLD / "COMMAND.txt").read_text())[4:], "--out", "RUN"),
}
"""The command that resumes the run is asked for its plan: else ranks would start where a file is not needed."""
FILES = (
    "manifest.json", "config.yaml", "plan.json", "record/head.json", "record/part-00000000-00000008.parquet",
    "corpus/corpus.json", "corpus/samples.parquet", "corpus/offsets.npy", "corpus/targets.npy",
    "corpus/target_offsets.npy", "corpus/tokens.bin", "corpus/tokenizer/tokenizer.json",
    "checkpoints/step-00000008/checkpoint.json", "checkpoints/step-00000008/model/config.json",
    "checkpoints/step-00000008/model/model.safetensors",
)  # fmt: skip

SETTINGS = ("config.yaml", "plan.json")
"""Files that few commands read: the others evaluate the run after each damage, so only a few kinds are asked."""
KINDS = ("empty", "not text", "nested")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the run; relative paths of its settings are in its folder."""
    folder = tmp_path_factory.mktemp("fuzz") / "finetune"
    shutil.copytree(OLD, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder / "run"


def test_sealed_samples_without_text(run: Path) -> None:
    """All tokens are the one that ends a text."""
    assert (
        faults(run, COMMANDS["generations"], "corpus/tokens.bin", damaged(run / "corpus/tokens.bin", ["zeros"])) == []
    )


@pytest.mark.parametrize("name", ["manifest.json", "record/head.json", "corpus/corpus.json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_damage_of_the_files_that_describe_a_run(command: str, name: str, run: Path) -> None:
    assert faults(run, COMMANDS[command], name, damaged(run / name, ["half"])) == []


@pytest.mark.long
@pytest.mark.minutes(3)
@pytest.mark.parametrize("command", COMMANDS)
def test_all_damages_of_all_files(command: str, run: Path) -> None:
    assert len(CONTENTS) * len(FILES) > 100
    kinds = {name: KINDS if name in SETTINGS else tuple(CONTENTS) for name in FILES}
    problems = {name: faults(run, COMMANDS[command], name, damaged(run / name, kinds[name])) for name in FILES}
    assert {name: lines for name, lines in problems.items() if lines} == {}
