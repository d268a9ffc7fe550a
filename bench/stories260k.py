"""Pretrain a model of 260 thousand parameters on 2 MiB of TinyStories, and compare it with llama2.c's stories260K.

    python -m bench.stories260k

Both models have the same sizes and the same vocabulary, so their losses can be compared: nats per token on the stories
that are sealed here. stories260K was trained on all of TinyStories, which probably includes these stories.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.trainer import ROOT, call, run_command
from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.models.load import load_model
from wellread.models.score import log_likelihoods
from wellread.plots.loss import loss_curve
from wellread.record.reader import Record
from wellread.run import RunDirectory

SHARED = ROOT.parent / "shared/data"
REFERENCE = SHARED / "stories260K"


def settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Settings of the run."""
    return {
        "size": "260K",
        "vocab": REFERENCE / "tok512.model",
        "data": options.data,
        "seq_len": 256,
        "batch_size": 32,
        "steps": options.steps,
        "save_every": max(1, options.steps // 10),
        "corpora": folder / "corpora",
        "out": folder / "run",
        "generations": 0,
    }


def sealed_loss(corpus: Corpus, model: Path) -> float:
    """Mean loss per token over all sealed samples."""
    scores, targets = log_likelihoods(load_model(model), corpus, np.arange(corpus.n_trainable, corpus.n))
    return float(-scores.sum() / targets.sum())


def main() -> None:
    """Train, compare and draw the losses."""
    parser = argparse.ArgumentParser(prog="python -m bench.stories260k", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "tinystories/train_head_2MiB.txt", help="stories, .txt")
    parser.add_argument("--steps", type=int, default=1500, help="number of steps, each of 32 windows of 256 tokens")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/stories260k.png", help="file for the picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wellread-260k-") as name:
        folder = Path(name)
        command = run_command(settings(options, folder), "pretrain")
        print(" ".join(command), flush=True)
        began = time.perf_counter()
        call(command)
        minutes = (time.perf_counter() - began) / 60
        reference_model = folder / "stories260K"
        arguments = [REFERENCE / "stories260K.bin", REFERENCE / "tok512.model", "--out", reference_model]
        call([command[0], "-m", "pretrain", "import", *map(str, arguments)])
        run = RunDirectory.open(folder / "run")
        corpus, record = Corpus.open(run.corpus), Record.open(run.record)
        reference = sealed_loss(corpus, reference_model)
        saved = {
            checkpoint.step: sealed_loss(corpus, checkpoint.model) for checkpoint in list_checkpoints(run.checkpoints)
        }
        losses = record.table().column("loss").to_numpy().reshape(-1, 32).mean(1)
        figure = loss_curve(
            np.arange(len(losses)),
            losses,
            holdout=list(saved.items()),
            reference=("stories260K on the same sealed stories", reference),
        )
        options.out.write_bytes(figure.png())
        print(f"{options.steps:,} steps of {32 * 255:,} predicted tokens in {minutes:.1f} minutes, including saving")
        print(f"{corpus.n_trainable:,} trainable and {corpus.n - corpus.n_trainable:,} sealed windows")
        print(f"sealed loss: {', '.join(f'step {step} {loss:.4f}' for step, loss in saved.items())}")
        print(f"stories260K: {reference:.4f}")
        print(f"{options.out}: written")


if __name__ == "__main__":
    main()
