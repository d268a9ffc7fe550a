"""Bad input: one line of error that says what, where and what to do, exit code 2, and no files left."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from wellread.run import RunDirectory

GOOD = {"instruction": "Name a color.", "context": "", "response": "Blue.", "category": "open_qa"}
Program = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]


@pytest.fixture
def refused(program: Program, in_process: Program, tmp_path: Path) -> Refused:
    """Ask for a run that is refused; check that nothing was created, and return the line of error without its label.

    With `env`, variables that libraries read when they are imported, the command runs in a process of its own.
    """
    out, corpora = tmp_path / "runs" / "refused", tmp_path / "corpora"

    def run(*flags: object, env: dict[str, str | None] | None = None) -> str:
        command = ("launch", "run", "finetune", "--out", out, "--corpora", corpora, "--steps", 1, *flags)
        result = program(*command, env=env) if env else in_process(*command)
        assert result.returncode == 2, result.stdout + result.stderr
        assert "training" not in result.stdout
        assert not out.exists()
        names = [path.name for path in corpora.glob("*")]  # glob shows hidden names too
        assert names == []
        label, _, message = result.stderr.partition(" ")
        assert label == "error:", result.stderr
        assert message.count("\n") == 1, result.stderr
        return message.rstrip("\n")

    return run


def data_file(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


# --- models


def test_unknown_model_names_the_nearest(refused: Refused) -> None:
    assert refused("--model", "pythia70m") == (
        "--model pythia70m: not a directory or a known model; did you mean pythia-70m? Other names that are near: "
        "pythia-70m-v0, pythia-410m, pythia-160m, pythia-31m; see wellread models"
    )


@pytest.mark.slow
def test_hub_unreachable(refused: Refused, tmp_path: Path) -> None:
    hub = {"HF_HUB_OFFLINE": None, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    message = refused("--model", "pythia-70m", "--data", "sample", env=hub)
    assert message.startswith("--model EleutherAI/pythia-70m: could not be downloaded from the hub (")
    assert message.endswith("); put it into a directory of $WELLREAD_MODELS or pass its directory")


@pytest.mark.slow
def test_hub_set_unreachable(refused: Refused, tmp_path: Path) -> None:
    hub = {
        "HF_HUB_OFFLINE": None,
        "HF_DATASETS_OFFLINE": None,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"),
    }
    message = refused("--data", "dolly", env=hub)
    assert message.startswith(
        "--data dolly: data set databricks/databricks-dolly-15k could not be downloaded from the hub ("
    )
    assert message.endswith("); download its file and pass --data dolly@FILE")


def test_model_directory_without_config(refused: Refused, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"")
    assert refused("--model", model, "--data", "sample") == (
        f"--model {model}: has no config.json; a model directory needs Hugging Face layout"
    )


def test_model_directory_without_tokenizer(refused: Refused, tmp_path: Path) -> None:
    model = model_directory(tmp_path / "model", vocab=2048)
    message = refused("--model", model, "--data", "sample")
    assert "no usable tokenizer (" in message
    assert message.endswith("); put its tokenizer.json into this directory")


def test_tokenizer_larger_than_the_embedding(refused: Refused, tiny_run: RunDirectory, tmp_path: Path) -> None:
    model = model_directory(tmp_path / "model", vocab=1024)
    for path in (tiny_run.corpus / "tokenizer").iterdir():
        shutil.copy(path, model)
    assert refused("--model", model, "--data", "sample") == (
        "--model model: its tokenizer has 2,048 tokens, but its embedding 1,024 rows; use the tokenizer of this model"
    )


def model_directory(path: Path, vocab: int) -> Path:
    """A small GPT-NeoX without a tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = GPTNeoXConfig(vocab_size=vocab, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(path)
    return path


# --- data


def test_missing_file(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "absent.jsonl"
    assert refused("--data", path) == f"--data {path}: {path} does not exist"


def test_empty_file(refused: Refused, tmp_path: Path) -> None:
    path = data_file(tmp_path / "empty.jsonl")
    assert refused("--data", path) == f"--data {path}: {path} is empty"


def test_file_of_empty_lines(refused: Refused, tmp_path: Path) -> None:
    path = data_file(tmp_path / "empty_lines.jsonl", "", "", "")
    assert str(path) in refused("--data", path)


def test_broken_json_row(refused: Refused, tmp_path: Path) -> None:
    path = data_file(tmp_path / "broken.jsonl", GOOD, GOOD, '{"instruction": "cut off')
    message = refused("--data", path)
    assert message.startswith(f"1 malformed row, 0 allowed: {path} row 3: not JSON: ")
    assert message.endswith("; fix them, or skip them with --max_bad_rows 1")


def test_row_without_instruction(refused: Refused, tmp_path: Path) -> None:
    incomplete = {key: value for key, value in GOOD.items() if key != "instruction"}
    path = data_file(tmp_path / "rows.jsonl", GOOD, incomplete, GOOD, GOOD | {"instruction": "  "})
    assert refused("--data", path) == (
        f"2 malformed rows, 0 allowed: {path} row 2: no 'instruction'; {path} row 4: 'instruction' is empty; "
        "fix them, or skip them with --max_bad_rows 2"
    )


def test_empty_responses_only(refused: Refused, tmp_path: Path) -> None:
    path = data_file(tmp_path / "silent.jsonl", *[GOOD | {"response": " "}] * 5)
    message = refused("--data", path)
    assert message.startswith("silent: no trainable sample is left (dropped empty response: 5")


# --- settings


def test_batch_size_not_divisible_by_ranks(refused: Refused) -> None:
    assert refused("--batch_size", 9, "--ranks_per_node", 2) == (
        "--batch_size 9: not divisible by 2 ranks; choose 8 or 10"
    )


def test_sequence_beyond_the_positions(refused: Refused) -> None:
    assert refused("--seq_len", 1024) == "--seq_len 1024: tiny has 512 positions; choose at most that"


def test_unknown_flag_names_the_nearest(refused: Refused) -> None:
    message = refused("--batchsize", 16)
    assert message == "unknown setting 'batchsize': did you mean --batch_size?"


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [("sed_len: 128\n", "sed_len", "--seq_len"), ("optim:\n  weight_deca: 0.1\n", "weight_deca", "weight_decay")],
)
def test_unknown_key_in_yaml_names_the_nearest(
    refused: Refused, tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    message = refused("--config", path)
    assert key in message
    assert "did you mean" in message
    assert nearest in message


def test_missing_yaml(refused: Refused, tmp_path: Path) -> None:
    assert str(tmp_path / "absent.yaml") in refused("--config", tmp_path / "absent.yaml")


# --- output directory


def test_output_directory_of_something_else(in_process: Program, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    result = in_process("launch", "run", "finetune", "--out", tmp_path, "--corpora", tmp_path / "corpora")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}: contains thesis.tex but no run; choose another --out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_output_directory_is_a_file(in_process: Program, tmp_path: Path) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("mine")
    result = in_process("launch", "run", "finetune", "--out", path, "--corpora", tmp_path / "corpora")
    assert (result.returncode, result.stderr) == (2, f"error: {path}: is a file; choose another --out\n")
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_second_launch_into_a_run(program: Program, corpora: Path, copied_run: RunDirectory) -> None:
    """This process takes the run's lock, as a launch does. The kernel releases a lock when its process ends."""
    flags = ("--steps", 12, "--save_every", 4, "--corpora", corpora, "--ranks_per_node", 2)
    before = sorted(copied_run.path.rglob("*"))
    with copied_run.lock():
        holder = (copied_run.path / "lock").read_text()
        result = program("launch", "run", "finetune", "--out", copied_run.path, *flags)
        assert result.returncode == 2
        assert result.stderr == (
            f"error: {copied_run.path}: in use by {holder}; wait for it, or choose another --out\n"
        )
    assert holder.startswith("process ")
    assert sorted(copied_run.path.rglob("*")) == before
    program("launch", "run", "finetune", "--out", copied_run.path, *flags, check=True)

    # The text that a killed launch has left in the lock file blocks nobody.
    (copied_run.path / "lock").write_text(holder)
    with open(copied_run.path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    program("launch", "run", "finetune", "--out", copied_run.path, *flags, check=True)


@pytest.mark.long
def test_the_directory_of_a_failed_start_is_used_again(
    program: Program, small_model: Path, corpora: Path, tmp_path: Path
) -> None:
    """It failed before its first checkpoint: nothing was read, and the corrected command uses the same directory."""
    broken = shutil.copytree(small_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file({name: weights[name] for name in sorted(weights)[1:]}, broken / "model.safetensors", {"format": "pt"})
    flags = ["--data", "sample", "--seq_len", 64, "--steps", 1, "--generations", 0, "--corpora", corpora]
    start = ["launch", "run", "finetune", *flags, "--out", tmp_path / "run"]
    result = program(*start, "--model", broken)  # only the ranks read the weights
    assert result.returncode == 2
    assert "use the config.json of these weights" in result.stderr
    start += ["--model", small_model]
    program(*start, "--freeze", "gpt_neox.embed_in.*", check=True)
    manifest = RunDirectory.open(tmp_path / "run").manifest()
    assert manifest["identity"]["freeze"] == "gpt_neox.embed_in.*"
    assert [attempt["exit_code"] for attempt in manifest["attempts"]] == [2, 0]
    assert "contains another run" in program(*start).stderr
