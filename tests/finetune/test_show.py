"""Output of `finetune prepare`: counts, lengths, dropped samples, and samples token by token."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.config.flat import flat
from wellread.corpus.read import Corpus

ROWS = [
    {"instruction": "Name a color.", "response": "Blue.\x1b[2J", "category": "open_qa"},
    {"instruction": "Name a tree.", "response": "An oak.", "category": "open_qa"},
    {"instruction": "Name a city.", "response": "", "category": "open_qa"},
    {"instruction": "Count. " * 20, "response": "1 2 3 4 5 6 7 8 9 " * 20, "category": "open_qa"},
    {"instruction": "Count. " * 60, "response": "1", "category": "open_qa"},
]


@pytest.fixture
def config(pythia_model: Path, tmp_path: Path) -> RunConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return RunConfig.of(
        model=str(pythia_model), data=str(path), corpora=str(tmp_path / "corpora"), holdout=0.0, seq_len=128
    )


@pytest.fixture(scope="module")
def pythia_model(pythia_tokenizer: Path) -> Path:
    """Sizes and tokenizer of a model; preparing does not read weights."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "max_position_embeddings": 128}
    config = {"model_type": "gpt_neox", "vocab_size": 50304, "intermediate_size": 8, **sizes}
    (pythia_tokenizer / "config.json").write_text(json.dumps(config))
    return pythia_tokenizer


SUMMARY = """\
3 samples: 3 trainable, 0 sealed; 166 tokens, 88 of them with loss (53.0%)
tokens per sample: median 20, longest 128
    1 to  16                                            0
   17 to  32  ########################################  2
   33 to  48                                            0
   49 to  64                                            0
   65 to  80                                            0
   81 to  96                                            0
   97 to 112                                            0
  113 to 128  ####################                      1
truncated at --seq_len, the end of the response is lost: 1
left out, the response is empty: 1
left out, the prompt fills --seq_len: 1
"""
SHOWN = """\
tokens with loss are between ⟦ and ⟧

sample 0: rows:1, category open_qa, 20 tokens, 6 with loss
### Instruction:
Name a color.

### Response:
⟦Blue.\\x1b[2J<|endoftext|>⟧
ids 4118 41959 27 187 2402 247 3295 15 187 187 4118 19371 27 187 ⟦22036 15 36320 19 43 0⟧

sample 1: rows:2, category open_qa, 18 tokens, 4 with loss
"""


@pytest.mark.shared
def test_the_summary_is_always_printed(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus.open(prepare(config))
    printed = capsys.readouterr().out
    assert printed.split("\n", 1)[1] == SUMMARY
    prepare(config)
    assert capsys.readouterr().out == f"corpus {config.data.corpora}/{corpus.path.name}: already compiled\n{SUMMARY}"


@pytest.mark.shared
def test_samples_without_colors(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(config, 2)
    printed = capsys.readouterr().out.partition(SUMMARY)[2]
    assert printed.startswith(SHOWN)
    assert printed.count("\nsample ") == 2


@pytest.mark.shared
def test_samples_on_a_terminal(config: RunConfig, root: Path) -> None:
    """On a terminal, tokens with loss are green, others dim, and control characters in the data are escaped."""
    flags = [f"--{name}={flat(config)[name]}" for name in ("model", "data", "corpora", "holdout", "seq_len")]
    leader, follower = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", "prepare", *flags, "--show", "1"],
        cwd=root,
        env=variables,
        stdout=follower,
        stderr=subprocess.DEVNULL,
    ) as job:
        os.close(follower)
        printed = b""
        try:
            while block := os.read(leader, 1 << 16):
                printed += block
        except OSError:  # the other end of the terminal is closed
            pass
    os.close(leader)
    assert job.returncode == 0
    text = printed.decode().replace("\r\n", "\n")
    assert "tokens with loss are green, others dim" in text
    assert (
        "\x1b[2m### Instruction:\nName a color.\n\n### Response:\n\x1b[0m\x1b[32mBlue.\\x1b[2J<|endoftext|>\x1b[0m"
        in text
    )
    assert re.search(r"\x1b\[2mids 4118 41959 .* 187 \x1b\[0m\x1b\[32m22036 15 .* 0\x1b\[0m", text)
    assert "⟦" not in text
