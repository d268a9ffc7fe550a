"""Compare predicted and measured peak host memory of real runs on CPUs, where all state is in host memory.

    python -m bench.memory [--quick | --cases N] [--only STRATEGY] [--long] [--json FILE] [--markdown FILE]

Each case is a separate run: `wellread run finetune` on a generated model, including loading and saving. All samples
have full length; the last cases train for 300 steps on samples with the lengths of Dolly.
The measured value is the largest sum over the ranks of private and shared memory (PSS), minus that of the same number
of idle interpreters with the same imports, which sleep during the run. Private memory is read 200 times a second from
the kernel's counter (RssAnon). Only shared pages are read from smaps: reading it takes so long that memory which is
freed and allocated again meanwhile would count twice. The error is predicted / measured - 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wellread.config import Dtype
from wellread.models.registry import find
from wellread.planning.estimate import Work, estimate
from wellread.planning.machine import Machine
from wellread.planning.parameters import parameters
from wellread.processes import importing

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"median": 0.10, "worst": 0.20, "under": 0.05}
"""Limits of the errors: median and largest absolute error, and the largest underestimate."""
SECONDS_BETWEEN = 0.005
WALKS_EVERY = 40
"""Number of samples between two reads of smaps."""
STEPS = 3
LONG = 300
"""Steps of the cases with Dolly's lengths: a run keeps the kernels of all shapes that it has had."""
PROMPTS = (1, 4, 5, 6, 7, 8, 9, 9, 10, 11, 13, 15, 18, 24, 42, 79, 109, 143, 192, 294, 3803)
RESPONSES = (1, 2, 6, 8, 10, 13, 15, 18, 22, 26, 31, 38, 45, 53, 62, 73, 86, 106, 137, 203, 1727)
"""Words of Dolly's instructions with their contexts, and of its responses: the smallest, then 20 quantiles."""


@dataclass(frozen=True)
class Shape:
    """Shape of a gpt_neox model for the benchmark."""

    vocab: int
    width: int
    layers: int
    heads: int


SHAPES = {
    "11M": Shape(8192, 256, 8, 4),
    "31M": Shape(50304, 288, 2, 4),
    "35M": Shape(50304, 256, 12, 4),
    "120M": Shape(50304, 768, 6, 12),
    "162M": Shape(50304, 768, 12, 12),
    "405M": Shape(50304, 1024, 24, 16),
}


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    strategy: str
    ranks: int
    dtype: Dtype
    micro_batch: int
    seq_len: int
    accumulation: int = 1
    checkpointing: bool = False
    """With activation checkpointing."""
    resumed: bool = False
    """Measure a run that resumes from a checkpoint."""
    steps: int = STEPS

    @property
    def long(self) -> bool:
        """Whether it trains for many steps on samples with Dolly's lengths."""
        return self.steps > STEPS


CASES = [
    Case("35M", "zero2", 2, "bf16", 2, 128),
    Case("35M", "ddp", 2, "fp32", 2, 128),
    Case("11M", "ddp", 1, "fp32", 2, 128),
    Case("120M", "ddp", 1, "bf16", 1, 64),
    Case("120M", "ddp", 2, "bf16", 1, 64),
    Case("35M", "zero1", 1, "fp32", 2, 256),
    Case("120M", "zero1", 2, "bf16", 2, 128),
    Case("162M", "zero2", 1, "bf16", 2, 256),
    Case("120M", "zero2", 2, "fp32", 1, 64),
    Case("35M", "zero2", 2, "bf16", 2, 128, 2),
    Case("35M", "zero3", 1, "fp32", 2, 256),
    Case("120M", "zero3", 2, "bf16", 2, 128),
    Case("120M", "zero2-offload", 1, "bf16", 2, 128),
    Case("35M", "zero2-offload", 2, "fp32", 2, 128),
    Case("35M", "zero3-offload", 1, "fp32", 2, 128),
    Case("162M", "zero3-offload", 2, "bf16", 1, 128),
    Case("120M", "zero3-partial", 1, "bf16", 2, 128),
    Case("35M", "zero3-partial", 2, "fp32", 2, 128),
    Case("31M", "zero3-nvme", 1, "bf16", 2, 128),
    Case("31M", "zero3-nvme", 2, "fp32", 2, 128),
    Case("162M", "ddp", 1, "bf16", 2, 256, checkpointing=True),
    Case("120M", "zero2", 2, "bf16", 4, 512, checkpointing=True),
    Case("162M", "zero3", 2, "bf16", 1, 128, resumed=True),
    Case("162M", "zero2-offload", 1, "bf16", 1, 128, resumed=True),
    Case("162M", "ddp", 2, "fp32", 1, 128, resumed=True),
    Case("405M", "zero2", 1, "bf16", 1, 64),
    Case("11M", "ddp", 1, "bf16", 4, 256, steps=LONG),
    Case("11M", "ddp", 1, "fp32", 4, 256, steps=LONG),
    Case("31M", "zero2", 1, "bf16", 4, 128, steps=LONG),
    Case("35M", "ddp", 2, "bf16", 2, 128, steps=LONG),
]
"""The fastest cases of each length first."""
QUICK = 2


@dataclass(frozen=True)
class Outcome:
    """Predicted and measured memory of one case, in MiB above idle interpreters."""

    case: Case
    parameters: int
    predicted: float
    measured: float
    phase: str
    """Phase with the predicted peak."""
    parts: dict[str, int]

    @property
    def error(self) -> float:
        """Relative error; above 0 if the prediction is too large."""
        return self.predicted / self.measured - 1


# --- a model and its data --------------------------------------------------------------------------------------------


def make_model(directory: Path, shape: Shape) -> None:
    """Write a random gpt_neox in half precision, as Pythia is published, with the tokenizer of the sample corpus."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from finetune.prepare import prepare
    from wellread.config import RunConfig
    from wellread.corpus.tokenizer import copy_files

    config = GPTNeoXConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=2048,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float16, trust_remote_code=False).save_pretrained(directory)
    copy_files(prepare(RunConfig.of(corpora=str(directory.parent / "corpora"))) / "tokenizer", directory)


def make_data(folder: Path) -> None:
    """Write the rows of all cases into a folder: ``full.jsonl`` and ``dolly.jsonl``."""
    make_long_rows(folder / "full.jsonl")
    make_dolly_rows(folder / "dolly.jsonl")


def make_long_rows(path: Path) -> None:
    """Write 64 rows with responses above every sequence length used here."""
    _write(path, [("Go on.", _text(number, 600)) for number in range(64)])


def make_dolly_rows(path: Path) -> None:
    """Write 4,000 rows whose prompts and responses are as long as Dolly's."""
    generator = np.random.default_rng(0)
    quantiles = np.linspace(0, 1, len(PROMPTS))
    lengths = (np.interp(generator.random(4000), quantiles, each).astype(int) for each in (PROMPTS, RESPONSES))
    pairs = enumerate(zip(*(each.tolist() for each in lengths), strict=True))
    _write(path, [(_text(i, prompt), _text(i + 7, response)) for i, (prompt, response) in pairs])


@cache
def _words() -> list[str]:
    rows = [json.loads(line) for line in (ROOT / "configs/data/sample.jsonl").read_text().splitlines()]
    return " ".join(row["context"] for row in rows if row.get("context")).split()


def _text(number: int, count: int) -> str:
    """`count` words of the sample set's contexts, from a place that depends on `number`."""
    words = _words()
    start = 37 * number % (len(words) - 1)
    return " ".join((words[start:] + words)[:count])


def _write(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"instruction": p, "context": "", "response": r}) + "\n" for p, r in pairs))


# --- measuring -------------------------------------------------------------------------------------------------------


IMPORTS = """wellread.train.rank wellread.train.loop wellread.corpus.tokenizer
transformers.models.gpt_neox.modeling_gpt_neox transformers.models.auto.modeling_auto
torch.utils.tensorboard torch.distributed.run safetensors.torch pyarrow.parquet psutil"""
DEEPSPEED_IMPORTS = "deepspeed deepspeed.runtime.zero.stage3 deepspeed.runtime.zero.stage_1_and_2 deepspeed.ops.adam"


def idle(strategy: str) -> None:
    """Import what a rank of `strategy` imports, print ready, and wait until stdin closes."""
    with importing():
        for name in f"{IMPORTS} {DEEPSPEED_IMPORTS if strategy != 'ddp' else ''}".split():
            importlib.import_module(name)
    print("ready", flush=True)
    sys.stdin.read()


def private(process: int) -> int:
    """Private memory of a process, bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def shared(process: int) -> int:
    """A process's share of the pages that it shares with files or other processes, bytes.

    Memory-mapped checkpoints do not count: the kernel reclaims their pages when it needs memory.
    """
    try:
        lines = Path(f"/proc/{process}/smaps").read_text().splitlines()
    except OSError:
        return 0
    total, counts = 0, True
    for words in map(str.split, lines):
        if not words[0].endswith(":"):  # first line of a mapping: addresses, permissions, ..., file
            counts = "/checkpoints/" not in words[-1]
        elif counts and words[0] == "Pss:":
            total += int(words[1])
        elif counts and words[0] == "Anonymous:":
            total -= int(words[1])
    return 1024 * total


def ranks_of(launcher: int, run: Path) -> list[int]:
    """Process ids of the run's ranks."""
    import psutil

    pids = []
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "train" in words and str(run) in words:
            pids.append(process.pid)
    return pids


def watch(launcher: subprocess.Popen[bytes], run: Path, twins: list[int]) -> int:
    """Peak memory of all ranks together minus that of their idle twins, bytes."""
    ranks: list[int] = []
    most, beyond, samples = 0, 0, 0
    while launcher.poll() is None:
        if len(ranks) < len(twins):
            ranks = ranks_of(launcher.pid, run)
        if samples % WALKS_EVERY == 0:
            beyond = sum(map(shared, ranks)) - sum(map(shared, twins))
        most = max(most, sum(map(private, ranks)) - sum(map(private, twins)) + beyond)
        samples += 1
        time.sleep(SECONDS_BETWEEN)
    return most


def peak(command: list[str], case: Case, run: Path, log: Path) -> int:
    """Start a run and its idle twins; return the peak memory of its ranks minus that of the twins, bytes."""
    twins = [start("idle", case.strategy) for _ in range(case.ranks)]
    try:
        for twin in twins:
            while twin.stdout and twin.stdout.readline().strip() not in (b"ready", b""):
                pass
        with open(log, "w") as file:
            launcher = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment())
            most = watch(launcher, run, [twin.pid for twin in twins])
        if launcher.returncode:
            raise RuntimeError(f"{case}: the run failed, code {launcher.returncode}\n{log.read_text()[-2000:]}")
    finally:
        for twin in twins:
            twin.communicate()
    return most


def measure(case: Case, folder: Path) -> Outcome:
    """Predict and measure one case."""
    model, run = folder / case.model, folder / "run"
    if not (model / "tokenizer.json").exists():
        call("make_model", model, SHAPES[case.model])
    spec = find(str(model))
    settings = {
        "model": model,
        "data": folder / ("dolly.jsonl" if case.long else "full.jsonl"),
        "corpora": folder / "corpora",
        "out": run,
        "steps": case.steps,
        "save_every": 1 if case.resumed else case.steps - (case.strategy == "ddp"),  # ddp saves while it trains
        "keep_states": STEPS if case.resumed else 1,
        "batch_size": case.micro_batch * case.accumulation * case.ranks,
        "micro_batch_size": case.micro_batch,
        "seq_len": case.seq_len,
        "holdout": 0.05,
        "strategy": case.strategy,
        "ranks_per_node": case.ranks,
        "dtype": case.dtype,
        "activation_checkpointing": "on" if case.checkpointing else "off",
        "nvme_path": folder,
    }
    command = [sys.executable, "-m", "launch", "run", "finetune", *(f"--{k}={v}" for k, v in settings.items())]
    try:
        most = peak(command, case, run, folder / "log")
        if case.resumed:
            for step in (STEPS, STEPS - 1):
                shutil.rmtree(run / f"checkpoints/step-{step:08d}")
            most = peak(command, case, run, folder / "log")
    finally:
        shutil.rmtree(run, ignore_errors=True)
    work = Work(
        dtype=case.dtype,
        micro_batch=case.micro_batch,
        accumulation=case.accumulation,
        seq_len=case.seq_len,
        even=not case.long,
    )
    prediction = estimate(
        spec, work, Machine(device="cpu", ranks_per_node=case.ranks), case.strategy, checkpointing=case.checkpointing
    )
    parts = {part: size for part, size in prediction.parts["host"].items() if part != "interpreters"}
    return Outcome(
        case=case,
        parameters=parameters(spec).total,
        predicted=sum(parts.values()) / 2**20,
        measured=most / 2**20,
        phase=prediction.peaks["host"],
        parts=parts,
    )


def environment() -> dict[str, str]:
    """Environment of the runs: no network, no GPU."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "NO_COLOR": "1"}


def start(function: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Start a function of this module in a new process."""
    code = f"from pathlib import PosixPath; from bench.memory import *; {function}(*{arguments!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )


def call(function: str, *arguments: Any) -> None:
    """Run a function of this module in a new process."""
    process = start(function, *arguments)
    process.communicate()
    if process.returncode:
        raise RuntimeError(f"{function}{arguments}: failed, code {process.returncode}")


# --- the table -------------------------------------------------------------------------------------------------------


def markdown(outcomes: list[Outcome]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [
        "| model | strategy | ranks | dtype | tokens | predicted MiB | measured MiB | error | peak in |",
        "|---:|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for o in outcomes:
        c = o.case
        tokens = f"{c.micro_batch} x {c.seq_len}" + (f" x {c.accumulation}" if c.accumulation > 1 else "")
        how = ", checkpointing" * c.checkpointing + ", resumed" * c.resumed + f", {c.steps} steps" * c.long
        lines.append(
            f"| {c.model} | {c.strategy}{how} | {c.ranks} | {c.dtype} | {tokens} | {o.predicted:,.0f} "
            f"| {o.measured:,.0f} | {o.error:+.1%} | {o.phase} |"
        )
    return "\n".join(lines)


def summary(outcomes: list[Outcome]) -> str:
    """One line: each error with its limit."""
    errors = [o.error for o in outcomes]
    values = {
        "median": statistics.median(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "under": max(0.0, -min(errors)),
    }
    return ", ".join(f"{name} {values[name]:.1%} (limit {limit:.0%})" for name, limit in LIMITS.items())


def main() -> None:
    """Measure all cases; print a line per case, then the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=len(CASES), help="run only the first N cases")
    parser.add_argument("--quick", action="store_true", help=f"run only the first {QUICK} cases")
    parser.add_argument("--only", help="run only cases of this strategy")
    parser.add_argument("--long", action="store_true", help=f"run only the cases of {LONG} steps")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    if options.cases < 1:
        parser.error(f"--cases {options.cases}: must be at least 1")
    cases = [c for c in CASES if options.only in (None, c.strategy) and (c.long or not options.long)]
    cases = cases[: QUICK if options.quick else options.cases]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="wellread-memory-") as name:
        make_data(Path(name))
        for number, case in enumerate(cases, start=1):
            outcomes.append(measure(case, Path(name)))
            outcome = outcomes[-1]
            print(
                f"{number:2}/{len(cases)} {case.model:>5} {case.strategy:14} {case.ranks} {case.dtype}"
                f"  predicted {outcome.predicted:7,.0f} MiB  measured {outcome.measured:7,.0f} MiB"
                f"  {outcome.error:+.1%}",
                flush=True,
            )
    print(f"\n{markdown(outcomes)}\n\n{summary(outcomes)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(f"{markdown(outcomes)}\n\n{summary(outcomes)}\n")


if __name__ == "__main__":
    main()
