"""Reported faults of training tools, next to the checkout: each gives the right samples, or one line that says why not.

The same kinds, with inputs of their own: `tests/bad_input/test_silent_loss.py`.
"""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.made_once import made_once
from support.programs import ROOT, SHARED, Program

pytestmark = pytest.mark.shared

CASES = SHARED.parent / "cases"
FOLDERS = [CASES] if CASES.is_dir() else []
"""Where the cases are not available, these tests do not exist."""
COMPLETE = "nothing was truncated or left out"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models that the cases name."""

    def make(folder: Path) -> None:
        shutil.copyfile(CASES / "_models/make.py", folder / "make.py")
        runpy.run_path(str(folder / "make.py"))

    return made_once(tmp_path_factory, "case-models", make)


@pytest.fixture
def run(models: Path, tmp_path: Path, in_process: Any) -> Any:
    """Run a program; CASE and MODELS in its arguments are folders, DIR in its output is that of the case."""

    def started(case: str, program: str, *arguments: str) -> Any:
        (folder,) = CASES.glob(f"{case}-*")
        places = {"CASE": folder, "MODELS": models, "OUT": tmp_path}
        for name, place in places.items():
            arguments = tuple(argument.replace(name, str(place)) for argument in arguments)
        result = in_process(program, *arguments)
        result.stdout, result.stderr = (
            text.replace(f"{folder}/", "").replace(f"{models}/", "") for text in (result.stdout, result.stderr)
        )
        return result

    return started


SEEN = {
    ("01", "instruction_input_response.jsonl", "chatml"): ["The bus leaves at nine and the tram at ten.", COMPLETE],
    ("01", "instruction_context_output.jsonl", "chatml"): ["The bus leaves at nine and the tram at ten.", COMPLETE],
    ("02", "sharegpt_sys.jsonl", "chatml"): ["system\nYou are a birdwatcher.<|im_end|>", "⟦A wren.", COMPLETE],
    ("02", "sysprompt.jsonl", "chatml"): ["Answer as a pirate.\n\n### Instruction:\nName a fish.", COMPLETE],
    ("03", "weight.jsonl", "chatml"): [
        "\nA brick.<|im_end|>\n", "⟦A wren.<|im_end|>⟧", "answers with weight 0, without loss: 1",
    ],
    ("06", "multi.jsonl", "glm"): ["⟦An apple.<|user|>⟧", "⟦A banana.<|endoftext|>⟧", COMPLETE],
    ("07", "jup", "base"): ["compiling 6 rows of jup (1 file)", "⟦Wren 0.<|endoftext|>⟧"],
    ("09", "multi.jsonl", "dated"): ["Today Date: 26 Jul 2024"],
    ("10", "mid_system.jsonl", "chatml"): [
        "⟦A wren.<|im_end|>⟧\n<|im_start|>system\nNow answer in capitals.<|im_end|>", COMPLETE,
    ],
    ("12", "bom.json", "base"): ["samples: ", COMPLETE],
    ("12", "bom.jsonl", "base"): ["samples: ", COMPLETE],
    ("12", "crlf.jsonl", "base", "--template", "CASE/tbom.txt"): ["with loss\n"],
    ("13", "indent.jsonl", "chatml"): ["⟦    c = a + b\n    return c<|im_end|>⟧"],
    ("16", "bigint.jsonl", "base", "--max_bad_rows", "1"): ["left out, malformed: 1"],
    ("17", "longcat.jsonl", "base", "--seq_len", "64"): ["compiling 2,000 rows"],
    ("23", "parts.jsonl", "chatml"): ["⟦A wren.<|im_end|>⟧", COMPLETE],
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN if FOLDERS else [], ids="/".join)
def test_the_samples_are_right(run: Any, case: tuple[str, ...]) -> None:
    number, file, model, *flags = case
    usual = ["--corpora", "OUT/corpora", "--holdout", "0", "--seq_len", "256", "--show", "1"]
    data = ["--data", f"CASE/{file}", "--model", f"MODELS/{model}"]
    result = run(number, "finetune", "prepare", *data, *usual, *flags)
    assert result.returncode == 0, result.stderr
    assert "\ufeff" not in result.stdout
    assert "OLD" not in result.stdout
    for text in SEEN[case]:
        assert text in result.stdout, result.stdout


REFUSED = {
    ("03", "tool2.jsonl", "chatml"): "tool2.jsonl row 1: message 2 of 'messages' has 'tool_calls', which is not read",
    ("04", "think.jsonl", "r1"): "think.jsonl row 1: its chat template leaves out part of what the assistant says",
    ("04", "think.jsonl", "r1_new"): "its chat template begins an answer in another way than it asks for one: ",
    ("11", "dup.jsonl", "base"): "key 'response' appears twice in an object; remove one",
    ("15", "far.parquet", "base"): "far.parquet: nothing reads the content of column 't' (4 rows); remove it",
    ("15", "badutf8.parquet", "base"): "badutf8.parquet row ",
    ("16", "bigint.jsonl", "base"): "contains an integer of more than 4,300 digits",
    ("18", "multi.jsonl", "typeerror"): "multi.jsonl row 1: its chat is rejected by the chat template: ",
    ("19", "chat60.jsonl", "pad_outside"): "pad_outside/config.json: pad_token_id ",
    ("19", "chat60.jsonl", "no_eos"): "error: no_eos: its tokenizer has no eos_token; set it in tokenizer_config.json",
    ("23", "utf16.jsonl", "chatml"): "error: utf16.jsonl: is UTF-16; save it as UTF-8",
    ("23", "list.jsonl", "chatml"): "error: list.jsonl: is one JSON list, not one object per line; name it .json",
}


@pytest.mark.parametrize("case", REFUSED if FOLDERS else [], ids="/".join)
def test_one_line_says_what_is_wrong(run: Any, case: tuple[str, ...]) -> None:
    number, file, model = case
    data = ["--data", f"CASE/{file}", "--model", f"MODELS/{model}", "--corpora", "OUT/corpora", "--seq_len", "256"]
    result = run(number, "finetune", "prepare", *data, "--holdout", "0")
    assert result.returncode == 2, result.stdout
    assert result.stderr.count("\n") == 1
    assert REFUSED[case] in result.stderr


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Midway"] if FOLDERS else [])
def test_the_day_does_not_change_a_corpus(run: Any, zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    data = ["--data", "CASE/multi.jsonl", "--model", "MODELS/dated", "--corpora", "OUT/corpora"]
    assert run("09", "finetune", "prepare", *data, "--holdout", "0", "--seq_len", "256").returncode == 0
    (corpus,) = tmp_path.glob("corpora/multi-*/corpus.json")
    assert json.loads(corpus.read_text())["counts"]["tokens"] == 179
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("folder", FOLDERS)
def test_long_lines_of_a_language_without_spaces_are_in_the_vocabulary(run: Any, folder: Path, tmp_path: Path) -> None:
    file = folder / "08-long-words-skipped/sp_cjk_mix.jsonl"
    flags = ["--corpora", "OUT/corpora", "--seq_len", "64", "--vocab", "600"]
    result = run("08", "pretrain", "prepare", "--data", f"CASE/{file.name}", *flags)
    assert result.returncode == 0, result.stderr
    (tokenizer,) = tmp_path.glob("corpora/*/tokenizer/tokenizer.json")
    pieces = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    texts = (json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines())
    assert {character for text in texts for character in text if not character.isspace()} <= pieces.keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_clusters(run: Any, folder: Path) -> None:
    model = ["--model", "MODELS/chatml", "--seq_len", "64", "--out", "OUT/run", "--nodes", "2"]
    data = ["--data", str(folder / "14-locale/chat60.jsonl"), "--cluster", "CASE/cluster.yaml"]
    result = run("21", "launch", "plan", "finetune", *model, *data)
    assert result.returncode == 0, result.stderr
    assert "wckey" not in result.stdout
    result = run("22", "launch", "plan", "finetune", *model, *data)
    assert result.returncode in (0, 2)
    assert "(cpu)" not in result.stdout


LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""An environment in which Python takes text for ASCII, as on nodes without a UTF-8 locale."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_corpus_is_compiled_and_shown_in_any_locale(
    folder: Path, models: Path, program: Program, tmp_path: Path
) -> None:
    data = ["--data", folder / "14-locale/chat60.jsonl", "--model", models / "chatml", "--seq_len", "64"]
    keys = {}
    for name, variables in (("utf8", {}), ("latin", LATIN)):
        where = ["--corpora", tmp_path / name, "--show", "1"]
        result = program("finetune", "prepare", *data, *where, env=variables)
        assert (result.returncode, result.stderr) == (0, "")
        assert "\u27e6" in result.stdout
        (keys[name],) = (path.parent.name for path in tmp_path.glob(f"{name}/*/corpus.json"))
    assert keys["utf8"] == keys["latin"]  # the text of the template, too, is read as UTF-8


@pytest.mark.long
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_run_ends_in_any_locale(folder: Path, models: Path, program: Program, tmp_path: Path) -> None:
    data = ["--data", folder / "14-locale/chat60.jsonl", "--model", models / "chatml", "--seq_len", "64"]
    few = ["--steps", "1", "--batch_size", "2", "--ranks_per_node", "1", "--generations", "2", "--snapshot", "off"]
    result = program(
        "launch", "run", "finetune", *data, *few, "--out", tmp_path / "run", "--corpora", tmp_path / "c", env=LATIN
    )
    assert result.returncode == 0, result.stderr
    written = tmp_path / "run/checkpoints/step-00000001/generations.jsonl"
    assert len([json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]) == 2


def test_a_tilde_is_the_home_folder(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copyfile(CASES / "14-locale/chat60.jsonl", tmp_path / "chat60.jsonl")
    (tmp_path / "t.txt").write_text("{instruction} {response}")
    (tmp_path / "run.yaml").write_text("out: ~/run1\ncorpora: ~/c\n")
    data = ["--data=~/chat60.jsonl", "--model", "MODELS/chatml", "--seq_len", "64"]
    result = run("20", "launch", "plan", "finetune", *data, "--config=~/run.yaml")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/run1" in result.stdout
    result = run("20", "launch", "plan", "finetune", *data, "--out=~/run2")
    assert f"{tmp_path}/run2" in result.stdout
    assert run("20", "finetune", "prepare", *data, "--corpora=~/c").returncode == 0
    assert len(list(tmp_path.glob("c/*/corpus.json"))) == 1
    assert not (Path.cwd() / "~").exists()


@pytest.mark.long
def test_the_packed_corpus_of_the_documents(program: Program, pythia_tokenizer: Path, tmp_path: Path) -> None:
    """docs/data.md shows what compiling Dolly with --pack prints."""
    shutil.copytree(pythia_tokenizer, tmp_path / "pythia-70m")
    sizes = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
    config = {"model_type": "gpt_neox", "vocab_size": 50304, "max_position_embeddings": 2048} | sizes
    (tmp_path / "pythia-70m/config.json").write_text(json.dumps(config))
    dolly = SHARED / "dolly/databricks-dolly-12k.jsonl"
    flags = ["--model", tmp_path / "pythia-70m", "--data", f"dolly@{dolly}", "--seq_len", "512", "--pack"]
    result = program("wellread", "prepare", "finetune", *flags, "--corpora", tmp_path / "corpora", check=True)
    text = (ROOT / "docs/data.md").read_text().partition("--seq_len 512 --pack\n")[2].partition("```")[0]
    _, *lines = text.splitlines()  # the first names the folder of the corpus
    assert len(lines) == 2
    assert [line for line in lines if line not in result.stdout] == [], result.stdout
