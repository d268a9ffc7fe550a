"""Write the model of a run: as it is in the checkpoint, or with the LoRA adapter merged into the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from wellread.checkpoint import Checkpoint
from wellread.errors import UserError
from wellread.files import new_directory
from wellread.named import named_checkpoint

EXAMPLES = """examples:
  wellread export runs/dolly-lora --merged --out models/dolly-70m        the newest checkpoint
  wellread export runs/dolly-lora@step-200 --out adapters/dolly          only the adapter
"""


def main(argv: list[str]) -> int:
    """Run ``wellread export`` for a fine-tuning run; return the exit code."""
    from wellread.cli import new_parser, parse

    parser = new_parser("wellread export", "Write the model of a run to a directory.", EXAMPLES)
    parser.add_argument("run", metavar="RUN[@step-N]", help="Run directory, and a checkpoint (default: the newest).")
    parser.add_argument("--out", required=True, metavar="DIR", help="New directory.")
    parser.add_argument(
        "--merged", action="store_true", help="For a LoRA run: merge the adapter into the weights of the model."
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
        When the checkpoint is damaged, `out` already exists, or there is no adapter to merge.
    """
    from wellread.corpus import tokenizer
    from wellread.models import load
    from wellread.models.adapter import is_adapter

    if damage := checkpoint.damage():
        raise UserError(f"{damage}; export another checkpoint")
    if merged and not is_adapter(checkpoint.model):
        raise UserError(
            f"--merged: {checkpoint.path} has no LoRA adapter, its weights are complete; leave --merged out"
        )
    with new_directory(out) as directory:
        if merged:
            load.export(load.Source.of(checkpoint.model), directory)
            tokenizer.copy_files(checkpoint.model, directory)
        else:
            shutil.copytree(checkpoint.model, directory, dirs_exist_ok=True)
