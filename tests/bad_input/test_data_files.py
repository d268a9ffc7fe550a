"""Unusable data: one line of error that says what, where and what to do, exit code 2, and no corpus left."""

import json
import sys
from pathlib import Path

import pytest

from finetune.__main__ import main
from wellread.cli import run_program
from wellread.errors import BAD_INPUT, UserError

ROW = {"instruction": "Name a color.", "context": "", "response": "Blue."}
ROWS = [ROW] * 3
HUB = "--data dolly: data set databricks/databricks-dolly-15k could not be downloaded from the hub ("


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        (
            ["--data=dolly@DIR/rows.jsonl"],
            [{"instruction": "x", "answer": "y"}],
            "DIR/rows.jsonl: no column 'response', which dolly needs; its columns are answer, instruction",
        ),
        (
            ["--data=DIR/rows.jsonl"],
            [{"topic": "x", "answer": "y"}],
            "DIR/rows.jsonl: columns answer, topic match no known schema (",
        ),
        (
            ["--data=DIR/rows.jsonl"],
            [*ROWS, ROW | {"response": ["Blue."]}],
            "1 malformed row, 0 allowed: DIR/rows.jsonl row 4: 'response' is list, not text; fix them, or skip them "
            "with --max_bad_rows 1",
        ),
        (
            ["--data=DIR/rows.jsonl"],
            [ROW | {"response": " "}] * 2,
            "rows: no trainable sample is left (dropped empty response: 2, sealed: 0); provide rows with tokens to",
        ),
        (
            ["--data=DIR/rows.jsonl", "--seq_len=4"],
            ROWS,
            "rows: no trainable sample is left (dropped prompt fills window: 3, sealed: 0); raise --seq_len",
        ),
        (
            ["--data=DIR/rows.jsonl:-0.5,sample:1.5"],
            ROWS,
            "--data DIR/rows.jsonl:-0.5: weight -0.5; it must be greater than 0, or remove the data set",
        ),
        (
            ["--data=DIR/rows.jsonl:4,sample"],
            ROWS,
            "--data rows:4: DIR/rows.jsonl has 3 rows; request at most that many",
        ),
        (
            ["--data=DIR/rows.jsonl", "--template=DIR/mine.txt"],
            ROWS,
            "template DIR/mine.txt: unknown field {topic}; DIR/rows.jsonl has {category}, {context}, {instruction}",
        ),
        (
            ["--data=DIR/rows.jsonl", "--template=alpacca"],
            ROWS,
            "--template alpacca: not a known template (alpaca, dolly, none, qa, chat) or a .txt file",
        ),
        (["--data=text@DIR/rows.jsonl", "--template=qa"], [{"text": "x"}], "--template qa: raw text has no template"),
        (["--data=hc3:finance@DIR/rows.jsonl"], [{"question": "x", "human_answers": ["y"], "chatgpt_answers": []}],
         "DIR/rows.jsonl: contains no rows of subset finance"),
        (["--data=dolly"], ROWS, HUB),
        (["--show=-1"], ROWS, "--show -1: must be at least 0"),
    ],
)  # fmt: skip
def test_one_line(
    flags: list[str],
    rows: list[object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.txt").write_text("{instruction} {topic} {response}")
    arguments = [flag.replace("DIR", str(tmp_path)) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["finetune", "prepare", f"--corpora={tmp_path / 'corpora'}", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_program(main)
    printed = capsys.readouterr()
    assert stopped.value.code == BAD_INPUT
    assert printed.err.startswith(f"error: {message.replace('DIR', str(tmp_path))}"), printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in (tmp_path / "corpora").glob("*") if path.is_dir()] == []


def test_a_megatron_data_set_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".idx", ".bin"):
        (tmp_path / f"pile{suffix}").write_bytes(b"MMIDIDX")
    monkeypatch.chdir(tmp_path)
    for name in ("pile.bin", "pile.idx", "./pile"):
        with pytest.raises(UserError, match=rf"--data {name}: a Megatron data set, .* write text@"):
            main(["prepare", "--data", name])
