"""Speed of pretraining, compared with plain transformers in fp32 and with the processor's peak in bf16.

    python -m bench.pretrain [--size 15M] [--vocab 4096] [--batch_size 32] [--json FILE]
    python -m bench.pretrain --loss                     compare bf16 with fp32 after 300 steps

The peer is a plain implementation of the same step: transformers' model in fp32, mean cross-entropy over all tokens,
AdamW, clipping. Both sides train a model of the same size on the same corpus, with the same batch and threads, and take
turns. The peak is that of square bf16 matrix products, measured in the same run; model FLOPs are counted as for the
run's MFU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.work import WARM
from bench.trainer import Step, call, compare, line, rate, run_command, versions, wellread
from wellread.checkpoint import list_checkpoints
from wellread.config import PretrainConfig
from wellread.corpus.read import Corpus
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.recipes.pretrain import model_of
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.train.watch.throughput import Cost, training_flops

GOALS = {"tokens/s": 4.0, "share of peak": 0.4}
STEPS = WARM + 6
LOSS_STEPS, LOSS_BATCH = 300, 8
SIDE = 2048
"""Side of the square matrices for measuring the peak."""


@dataclass(frozen=True)
class Work:
    """Sizes that both sides use."""

    size: str
    vocab: int
    batch_size: int
    seq_len: int
    stories: int

    @property
    def config(self) -> PretrainConfig:
        """Settings of a run, without its folders."""
        return PretrainConfig.of(model=f"stories-{self.size.lower()}", vocab=str(self.vocab), seq_len=self.seq_len)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return model_of(find(self.config.model.name), self.vocab, self.config)


def settings(work: Work, folder: Path, **overrides: Any) -> dict[str, Any]:
    """Settings of a run that saves only at its start and end."""
    steps = overrides.get("steps", STEPS)
    return {
        "model": work.config.model.name,
        "vocab": work.vocab,
        "data": f"stories:{work.stories}",
        "seq_len": work.seq_len,
        "batch_size": work.batch_size,
        "corpora": folder / "corpora",
        "out": folder / "run",
        "steps": steps,
        "save_schedule": "linear",
        "save_every": steps,
        "log_every": steps,
        "generations": 0,
    } | overrides


def corpus_of(folder: Path) -> Corpus:
    """The only corpus that the runs have compiled."""
    (directory,) = (path.parent for path in (folder / "corpora").glob("*/corpus.json"))
    return Corpus.open(directory)


def plain(work: Work, folder: Path) -> float:
    """Tokens per second of the peer."""
    call([sys.executable, "-m", "bench.pretrain", "plain", json.dumps(asdict(work)), str(folder)])
    return rate([Step(*values) for values in json.loads((folder / "plain.json").read_text())])


def train_plainly(work: Work, folder: Path) -> None:
    """Train the same steps with plain code; write the end time and number of tokens of each to plain.json."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    from wellread.models import llama

    corpus, steps = corpus_of(folder), []
    full = np.flatnonzero(corpus.lengths(np.arange(corpus.n_trainable)) == work.seq_len)
    model: Any = AutoModelForCausalLM.from_config(
        llama.configuration(work.spec, 1, 2), dtype=torch.float32, trust_remote_code=False
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1)
    for number in range(STEPS):
        ids = full[number * work.batch_size :][: work.batch_size]
        batch = torch.from_numpy(np.stack([corpus.tokens(i).astype(np.int64) for i in ids.tolist()]))
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.append((time.perf_counter(), batch.numel()))
    (folder / "plain.json").write_text(json.dumps(steps))


def peak() -> float:
    """Operations per second of square bf16 matrix products, measured in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        call([sys.executable, "-m", "bench.pretrain", "peak", folder])
        return float((Path(folder) / "peak").read_text())


def multiply(folder: Path) -> None:
    """Write the operations per second of the fastest of ten products to the file peak."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    (folder / "peak").write_text(str(2 * SIDE**3 / best))


def flops_per_token(work: Work) -> float:
    """Floating-point operations per token of a full window, forward and backward."""
    n, length = work.batch_size, work.seq_len
    cost = Cost(tokens=n * length, targets=n * (length - 1), squares=n * length**2, padded=0, host_bytes=0, gpu_bytes=0)
    return training_flops(work.spec, 0, cost) / cost.tokens


def speed(work: Work, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Both rows of the table."""
    run_settings = settings(work, folder)
    call(run_command(run_settings | {"out": folder / "first"}, "pretrain"))  # compiles the corpus
    speeds = compare("tokens/s", lambda: wellread(run_settings, 1, "pretrain"), lambda: plain(work, folder), repeats)
    print(line(speeds, GOALS), flush=True)
    best = statistics.median(peak() for _ in range(repeats))
    reached = speeds["wellread"] * flops_per_token(work)
    share = {"what": "share of peak", "tflops": reached / 1e12, "peak": best / 1e12, "ratio": reached / best}
    print(
        f"{'share of peak':<18}{reached / 1e12:>12.3f}{best / 1e12:>12.3f}{reached / best:>10.2f}"
        f"   (TFLOP/s of bf16; goal: {GOALS['share of peak']:g})"
    )
    return [speeds, share]


def losses(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Training loss (mean over the last 10% of the samples) and loss on sealed stories, in bf16 and in fp32."""
    rows = []
    for dtype in ("bf16", "fp32"):
        out = folder / dtype
        run_settings = settings(work, folder, steps=LOSS_STEPS, batch_size=LOSS_BATCH, dtype=dtype, out=out)
        call(run_command(run_settings, "pretrain"))
        run = RunDirectory.open(out)
        read = Record.open(run.record).table().column("loss").to_numpy()
        sealed = list_checkpoints(run.checkpoints)[-1].manifest["holdout_loss"]
        rows.append({"dtype": dtype, "read": float(read[-len(read) // 10 :].mean()), "sealed": sealed})
        print(f"{dtype}: {rows[-1]['read']:.4f} on the last 10% of the samples, {sealed:.4f} on sealed stories")
    print(f"bf16 - fp32: {rows[0]['read'] - rows[1]['read']:+.4f}, {rows[0]['sealed'] - rows[1]['sealed']:+.4f} nats")
    return rows


def main() -> None:
    """Run the benchmark, or one of the processes that it measures."""
    if sys.argv[1:2] == ["plain"]:
        train_plainly(Work(**json.loads(sys.argv[2])), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["peak"]:
        multiply(Path(sys.argv[2]))
    else:
        bench()


def bench() -> None:
    """Print the commands, then the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.pretrain", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="15M")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="measurements per side")
    parser.add_argument("--loss", action="store_true", help=f"compare losses of bf16 and fp32 after {LOSS_STEPS} steps")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    stories = 3000 if options.loss else max(500, 2 * STEPS * options.batch_size)
    work = Work(options.size, options.vocab, options.batch_size, options.seq_len, stories)
    with tempfile.TemporaryDirectory(prefix="wellread-pretrain-") as name:
        folder = Path(name)
        print(versions())
        print(f"wellread: {' '.join(map(str, run_command(settings(work, folder), 'pretrain')))}")
        if not options.loss:
            print(f"plain: {sys.executable} -m bench.pretrain plain '{json.dumps(asdict(work))}' {folder}")
            print(f"{'':<18}{'wellread':>12}{'peer':>12}{'ratio':>10}", flush=True)
        rows = losses(work, folder) if options.loss else speed(work, folder, options.repeats)
    if options.json:
        options.json.write_text(json.dumps({"work": asdict(work), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
