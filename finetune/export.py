"""Take a run's model out of its checkpoint: as it is, or with the adapter of LoRA merged into the weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from wellread.checkpoint import Checkpoint, list_checkpoints, open_checkpoint
from wellread.runs import RunDirectory

EXAMPLES = """examples:
  python -m finetune export runs/dolly-lora --merged --out models/dolly-70m        the newest checkpoint
  python -m finetune export runs/dolly-lora@step-200 --out adapters/dolly          the adapter alone
"""


def main(argv: list[str]) -> int:
    """Export what the command line names; return the exit code."""
    from wellread.cli import new_parser, parse

    parser = new_parser("python -m finetune export", "Take a model out of a run.", EXAMPLES)
    parser.add_argument("run", metavar="RUN[@step-N]", help="Run directory, and a checkpoint (default: the newest).")
    parser.add_argument("--out", required=True, metavar="DIR", help="Where it goes; nothing may be there.")
    parser.add_argument(
        "--merged", action="store_true", help="Of a LoRA run: a whole model, the adapter merged into its weights."
    )
    values = parse(parser, argv)
    export(_checkpoint(values.run), Path(values.out), merged=values.merged)
    print(f"{values.out}: written", flush=True)
    return 0


def export(checkpoint: Checkpoint, out: Path, *, merged: bool) -> None:
    """Write a checkpoint's model, with its tokenizer, into a new directory.

    Raises
    ------
    ValueError
        When the checkpoint is damaged or `out` is not empty.
    """
    from wellread.data import tokenizer
    from wellread.models import load
    from wellread.models.adapter import is_adapter

    if damage := checkpoint.damage():
        raise ValueError(f"{damage}; export another checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: is there already; choose a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    if merged and is_adapter(checkpoint.model):
        load.export(load.Source.of(checkpoint.model), staging)
        tokenizer.copy_files(checkpoint.model, staging)
    else:
        shutil.copytree(checkpoint.model, staging)
    if out.exists():
        out.rmdir()
    staging.rename(out)


def _checkpoint(name: str) -> Checkpoint:
    path, _, step = (name, "", "") if "@" not in name or Path(name).is_dir() else name.rpartition("@")
    run = RunDirectory.open(path)
    if not step:
        found = list_checkpoints(run.checkpoints)
        if not found:
            raise ValueError(f"{run.path}: has no checkpoint yet")
        return found[-1]
    if not re.fullmatch(r"step-\d+", step):
        raise ValueError(f"{name}: {step!r} is no checkpoint; write RUN@step-N")
    return open_checkpoint(run.checkpoints, int(step.removeprefix("step-")))
