"""Copy a model from a checkpoint of a run, optionally with its LoRA adapter merged into the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from wellread.checkpoint import Checkpoint, named_checkpoint
from wellread.errors import UserError
from wellread.files import new_directory

EXAMPLES = """examples:
  python -m finetune export runs/dolly-lora --merged --out models/dolly-70m        the newest checkpoint
  python -m finetune export runs/dolly-lora@step-200 --out adapters/dolly          only the adapter
"""


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    from wellread.cli import new_parser, parse

    parser = new_parser("python -m finetune export", "Copy a model from a run.", EXAMPLES)
    parser.add_argument("run", metavar="RUN[@step-N]", help="Run directory, and a checkpoint (default: the newest).")
    parser.add_argument("--out", required=True, metavar="DIR", help="Directory to create; it must not exist.")
    parser.add_argument(
        "--merged", action="store_true", help="For a LoRA run: write a complete model, with the adapter merged."
    )
    values = parse(parser, argv)
    export(named_checkpoint(values.run), Path(values.out), merged=values.merged)
    print(f"{values.out}: written", flush=True)
    return 0


def export(checkpoint: Checkpoint, out: Path, *, merged: bool) -> None:
    """Write a checkpoint's model, with its tokenizer, into a new directory.

    Raises
    ------
    UserError
        When the checkpoint is damaged or `out` already exists.
    """
    from wellread.corpus import tokenizer
    from wellread.models import load
    from wellread.models.adapter import is_adapter

    if damage := checkpoint.damage():
        raise UserError(f"{damage}; export another checkpoint")
    with new_directory(out) as directory:
        if merged and is_adapter(checkpoint.model):
            load.export(load.Source.of(checkpoint.model), directory)
            tokenizer.copy_files(checkpoint.model, directory)
        else:
            shutil.copytree(checkpoint.model, directory, dirs_exist_ok=True)
