"""Speed of preparing the 12,000 rows of Dolly, compared with datasets.map and a function of one row.

    python -m bench.preparing [--repeats 3] [--json FILE]

Each side uses one process; the sides take turns. `compiling` measures only the work, without imports and without
loading a tokenizer: for wellread, from reading and checking the rows to the hashed corpus on disk; for the peer, the
call of map, without reading the file. `preparing` measures the complete commands.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.work import make_model
from bench.trainer import DATA, TOKENIZER, call, compare, line, versions
from wellread.config import RunConfig
from wellread.data.rows import templates

LONGEST = 512
"""Maximum length of a sample, tokens."""
SECONDS = "seconds"
"""File to which a process writes the seconds that its work took."""
GOALS = {"compiling": 3.0}
"""Minimum ratio peer / wellread."""


def prepare_command(data: Path, folder: Path) -> list[str]:
    """The command that compiles all rows."""
    return [sys.executable, "-m", "finetune", "prepare", *(f"--{k}={v}" for k, v in all_settings(data, folder).items())]


def all_settings(data: Path, folder: Path) -> dict[str, Any]:
    """Settings of the corpus of all rows."""
    paths = {"model": folder / "model", "data": f"dolly@{data}", "corpora": folder / "all"}
    return {name: str(value) for name, value in paths.items()} | {"seq_len": LONGEST}


def child_command(what: str, data: Path, folder: Path) -> list[str]:
    """The command of a process that measures its work without imports and loading, and writes the seconds to a file."""
    return [sys.executable, "-m", "bench.preparing", what, str(data), str(folder)]


def compile_rows(data: Path, folder: Path) -> None:
    """Compile all rows: read, check, apply the template, tokenize, mask, seal, hash and write."""
    import torch  # noqa: F401 - the tokenizer's library would import it
    from transformers import AutoTokenizer

    from finetune.prepare import prepare

    AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=False)
    began = time.perf_counter()
    prepare(RunConfig.of(**all_settings(data, folder)))
    (folder / SECONDS).write_text(f"{time.perf_counter() - began}")


def map_rows(data: Path, folder: Path) -> None:
    """Apply the template, tokenize and label each row with a Python function, as examples for the Trainer do.

    The prompt is tokenized by itself and with its response, to find where labels begin, as in TRL's SFTTrainer.
    """
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=False)
    template = templates.load("dolly", ("instruction", "context"), str(data))

    def tokenized(row: dict[str, str]) -> dict[str, list[int]]:
        text, lead = template.prompt(row)
        prompt = tokenizer(text)["input_ids"]
        tokens = (tokenizer(text + lead + row["response"])["input_ids"] + [tokenizer.eos_token_id])[:LONGEST]
        labels = ([-100] * len(prompt) + tokens[len(prompt) :])[:LONGEST]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    rows = load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder / "cache"))
    began = time.perf_counter()
    rows.map(tokenized, remove_columns=rows.column_names)
    (folder / SECONDS).write_text(f"{time.perf_counter() - began}")


def seconds(command: list[str], folder: Path, *, inside: bool) -> float:
    """Seconds of a command, or with `inside` what it measured itself; removes its output."""
    began = time.perf_counter()
    call(command)
    took = time.perf_counter() - began
    for output in ("all", "cache"):
        shutil.rmtree(folder / output, ignore_errors=True)
    return float((folder / SECONDS).read_text()) if inside else took


def measure(data: Path, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Compare only the work, then the complete commands."""
    peer_command = child_command("map", data, folder)
    commands = {"compiling": child_command("compile", data, folder), "preparing": prepare_command(data, folder)}
    for what, command in commands.items():
        inside = what == "compiling"
        wellread, peer = (partial(seconds, side, folder, inside=inside) for side in (command, peer_command))
        yield compare(what, wellread, peer, repeats, seconds=True)


def main() -> None:
    """Run the benchmark, or one of the processes that it measures."""
    work = {"map": map_rows, "compile": compile_rows}
    if sys.argv[1:2] and sys.argv[1] in work:
        work[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        bench()


def bench() -> None:
    """Measure; print the commands and a line per comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.preparing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="measurements per side")
    parser.add_argument("--data", type=Path, default=DATA, help="rows of Dolly, as JSONL")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Pythia's tokenizer.json")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    for file in (options.data, options.tokenizer):
        if not file.is_file():
            parser.error(f"{file}: not found; pass files with --data and --tokenizer")
    with tempfile.TemporaryDirectory(prefix="wellread-preparing-") as name:
        folder = Path(name)
        make_model(folder / "model", "tiny", options.tokenizer)
        print("compiling:", shlex.join(child_command("compile", options.data, folder)))
        print("preparing:", shlex.join(prepare_command(options.data, folder)))
        print("peer:", shlex.join(child_command("map", options.data, folder)))
        print(versions())
        print(f"{'seconds':<18}{'wellread':>12}{'peer':>12}{'ratio':>10}", flush=True)
        rows = []
        for row in measure(options.data, folder, options.repeats):
            rows.append(row)
            print(line(row, GOALS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
