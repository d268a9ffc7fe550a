"""Speed compared with Hugging Face's Trainer with DeepSpeed on rows of Dolly, and seconds to the first step.

    python -m bench.trainer [--model tiny | pythia-70m] [--strategy zero2] [--only train] [--json FILE]

Both sides train the same model (random weights, one file) on the same tokens and loss masks, with the same batch,
micro-batch, dtype, strategy, optimizer, ranks and threads, and neither saves during the measurement. The Trainer gets
its fastest settings: samples grouped by length, dynamic padding, precomputed lengths and labels, a worker for
collation, no logging. The sides take turns. Rates are those of an epoch without its first steps, in tokens without
padding.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from wellread.config import CONFIGS, RunConfig
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.models.registry import find

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data/dolly/databricks-dolly-12k.jsonl"
TOKENIZER = ROOT.parent / "shared/data/tokenizers/pythia_20B_tokenizer.json"
VOCABULARY = 50304
"""Number of rows of Pythia's embedding: its number of tokens, rounded up."""
WARM = 3
"""Number of warm-up steps of an epoch, which are not measured."""
GOALS = {"tokens/s": 1.2, "samples/s packed": 2.0, "seconds to step 1": 10.0}
"""Minimum ratios wellread / peer, and the maximum number of seconds from a command to its first step."""
Side = Callable[[], float]
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers")


@dataclass(frozen=True)
class Work:
    """Model and sizes that both sides use."""

    model: str
    strategy: str
    ranks: int
    batch_size: int
    micro_batch_size: int
    seq_len: int
    samples: int

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return self.samples // self.batch_size


@dataclass(frozen=True)
class Step:
    """One optimizer step, over all ranks."""

    ended: float
    """Time when the step ended, seconds; the two sides use different clocks."""
    tokens: float
    """Number of tokens, without padding."""


def rate(steps: list[Step]) -> float:
    """Tokens per second of wall time, without the first steps."""
    return sum(step.tokens for step in steps[WARM:]) / (steps[-1].ended - steps[WARM - 1].ended)


# --- a model and its data --------------------------------------------------------------------------------------------


def make_model(directory: Path, name: str, tokenizer: Path) -> None:
    """Write a gpt_neox with random weights in the shape of `name`, with Pythia's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

    spec = find(name)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate,
        max_position_embeddings=spec.positions,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token=end, pad_token=end).save_pretrained(directory)


def make_data(work: Work, data: Path, folder: Path) -> None:
    """Write the first rows of `data` that give `work.samples` samples to rows.jsonl."""
    rows = data.read_text().splitlines(keepends=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(rows[: work.samples + work.samples // 4]))
    usable = np.sort([numbers[0] for numbers in compiled(work, folder).samples()["rows"].to_pylist()])
    if len(usable) < work.samples:
        raise UserError(f"--samples {work.samples}: {data} has only {len(usable)}; choose fewer")
    shutil.rmtree(folder / "corpora")
    file.write_text("".join(rows[row - 1] for row in usable[: work.samples]))


def compiled(work: Work, folder: Path) -> Corpus:
    """The corpus that runs of `work` read."""
    from finetune.prepare import prepare

    settings = run_settings(work, folder)
    return Corpus.open(prepare(RunConfig.of(**{name: settings[name] for name in RUN_DATA})))


# --- wellread --------------------------------------------------------------------------------------------------------


RUN_DATA = ("model", "data", "corpora", "seq_len", "holdout")
"""Settings of a run that define its corpus."""


def run_settings(work: Work, folder: Path) -> dict[str, Any]:
    """Settings of a run of one epoch that saves only at its start and end."""
    return {
        "model": str(folder / "model"),
        "data": f"dolly@{folder / 'rows.jsonl'}",
        "corpora": str(folder / "corpora"),
        "out": str(folder / "run"),
        "seq_len": work.seq_len,
        "holdout": 0.0,
        "steps": work.steps,
        "batch_size": work.batch_size,
        "micro_batch_size": work.micro_batch_size,
        "ranks_per_node": work.ranks,
        "strategy": work.strategy,
        "save_every": work.steps,
        "log_every": work.steps,
    }


def packed_settings(work: Work, folder: Path) -> dict[str, Any]:
    """The same epoch with packed samples and the same number of tokens per step."""
    tokens = work.samples * mean_length(work, folder)
    sequences = max(work.ranks, round(tokens / work.steps / work.seq_len / work.ranks) * work.ranks)
    steps = max(WARM + 1, int(tokens / work.seq_len / sequences))
    overrides = {"pack": True, "steps": steps, "batch_size": sequences, "save_every": steps, "log_every": steps}
    settings = run_settings(work, folder) | overrides
    del settings["micro_batch_size"]
    return settings


def run_command(settings: dict[str, Any], program: str = "finetune") -> list[str]:
    """The command of a run."""
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "launch", "run", program, *flags]


def wellread(
    settings: dict[str, Any], ranks: int, program: str = "finetune", variables: dict[str, str] | None = None
) -> float:
    """Tokens per second of a run, from its TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Path(settings["out"])
    call(run_command(settings, program), ranks, variables)
    events = EventAccumulator(str(run / "tb"), {"scalars": 0})
    events.Reload()
    rates, seconds = (events.Scalars(f"speed/{name}") for name in ("tokens_per_second", "step_seconds"))
    shutil.rmtree(run)
    return rate([Step(a.wall_time, a.value * b.value) for a, b in zip(rates, seconds, strict=True)])


def seconds_to_step_1(folder: Path) -> float:
    """Seconds from the start of a command to the output of its first step."""
    began = time.perf_counter()
    process = subprocess.Popen(
        start_command(folder),
        cwd=ROOT,
        env=environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    took = 0.0
    for line in process.stdout or ():
        if line.startswith("step") and not took:
            took = time.perf_counter() - began
    if process.wait() or not took:
        raise RuntimeError(f"the run ended with code {process.returncode}, its first step after {took} s")
    shutil.rmtree(folder / "run")
    return took


def start_command(folder: Path) -> list[str]:
    """The command of a run of `tiny` on the sample data set, with default settings."""
    settings = {"model": "tiny", "corpora": folder / "corpora", "out": folder / "run"}
    return run_command(settings | {"steps": WARM, "save_every": WARM})


# --- the Trainer -----------------------------------------------------------------------------------------------------


def trainer_command(work: Work, folder: Path) -> list[str]:
    """The command that trains one epoch with the Trainer."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={work.ranks}"]
    return [*torchrun, "-m", "bench.trainer", "peer", json.dumps(asdict(work)), str(folder)]


def trainer(work: Work, folder: Path) -> float:
    """Tokens per second of the Trainer."""
    call(trainer_command(work, folder), work.ranks)
    return rate([Step(*values) for values in json.loads((folder / "peer.json").read_text())])


def peer(work: Work, folder: Path) -> None:
    """Train one epoch with the Trainer on this rank; rank 0 writes each step's end and tokens to peer.json."""
    import torch
    import torch.distributed as dist
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    settings = TrainingArguments(**training_arguments(work, folder))
    steps: list[tuple[float, int]] = []
    tokens = 0

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal tokens
            steps.append((time.time(), tokens))
            tokens = 0

    class Counting(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal tokens
            tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *arguments, **options)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    Counting(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=settings,
        train_dataset=Dataset.from_list(list(labeled(compiled(work, folder)))),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        callbacks=[Ends()],
    ).train()
    counts = torch.tensor([count for _, count in steps])
    if work.ranks > 1:
        dist.all_reduce(counts)
    if settings.process_index == 0:
        summed = [(ended, count) for (ended, _), count in zip(steps, counts.tolist(), strict=True)]
        (folder / "peer.json").write_text(json.dumps(summed))


def training_arguments(work: Work, folder: Path) -> dict[str, Any]:
    """Arguments of the Trainer; all others have its defaults."""
    deepspeed = json.loads((CONFIGS / f"ds/{work.strategy}.json").read_text()) if work.strategy != "ddp" else None
    if deepspeed:
        automatic = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
        deepspeed |= dict.fromkeys((*automatic, "gradient_clipping"), "auto") | {"bf16": {"enabled": "auto"}}
    config = RunConfig().optim
    return {
        "output_dir": str(folder / "peer"),
        "use_cpu": True,
        "bf16": True,
        "deepspeed": deepspeed,
        "ddp_find_unused_parameters": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": work.micro_batch_size,
        "gradient_accumulation_steps": work.batch_size // work.micro_batch_size // work.ranks,
        "train_sampling_strategy": "group_by_length",
        "dataloader_num_workers": 1,
        "optim": "adamw_torch_fused",
        "learning_rate": find(work.model).lr,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def labeled(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Rows for the Trainer: the corpus's tokens, with label -100 for tokens without loss."""
    for sample in range(corpus.n_trainable):
        tokens = corpus.tokens(sample).astype(np.int64)
        labels = np.where(corpus.targets(sample), tokens, -100)
        yield {"input_ids": tokens.tolist(), "labels": labels.tolist(), "length": len(tokens)}


# --- both ------------------------------------------------------------------------------------------------------------


def environment(ranks: int) -> dict[str, str]:
    """Environment of both sides: no network, no GPU, the same number of threads."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions"),
        "NO_COLOR": "1",
    }


def call(command: list[str], ranks: int = 1, variables: dict[str, str] | None = None) -> None:
    """Run a command in an environment (default: `environment` of so many ranks); raise if it fails."""
    within = environment(ranks) if variables is None else variables
    process = subprocess.run(command, cwd=ROOT, env=within, capture_output=True, text=True, check=False)
    if process.returncode:
        output = (process.stdout + process.stderr)[-3000:]
        raise RuntimeError(f"{shlex.join(command)}: failed, code {process.returncode}\n{output}")


def versions() -> str:
    """Versions of the packages that both sides use."""
    return "versions: " + ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)


def take_turns(repeats: int, *sides: Side) -> Iterator[tuple[float, ...]]:
    """Results of the sides, which are measured in turns."""
    for _ in range(repeats):
        yield tuple(side() for side in sides)


def compare(name: str, wellread: Side, peer: Side, repeats: int, *, seconds: bool = False) -> dict[str, Any]:
    """Measure both sides in turns: medians, and the median of the ratios, above 1 if wellread is faster."""
    pairs = list(take_turns(repeats, wellread, peer))
    ratios = [b / a if seconds else a / b for a, b in pairs]
    return {
        "what": name,
        "wellread": statistics.median(pair[0] for pair in pairs),
        "peer": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }


def training(work: Work, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Training speed, without and with packing."""
    mean = mean_length(work, folder)
    settings = run_settings(work, folder)
    yield compare("tokens/s", lambda: wellread(settings, work.ranks), lambda: trainer(work, folder), repeats)
    packed = packed_settings(work, folder)
    yield compare(
        "samples/s packed",
        lambda: wellread(packed, work.ranks) / mean,
        lambda: trainer(work, folder) / mean,
        repeats,
    )


def mean_length(work: Work, folder: Path) -> float:
    """Mean number of tokens of a sample."""
    corpus = compiled(work, folder)
    return float(corpus.lengths(np.arange(corpus.n_trainable)).mean())


def starting(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds to the first step of a run when its corpus and code are cached."""
    took = [seconds_to_step_1(folder) for _ in range(repeats + 1)][1:]
    return {"what": "seconds to step 1", "wellread": statistics.median(took)}


def commands(work: Work, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names and commands of what is measured."""
    yield "wellread", run_command(run_settings(work, folder))
    yield "packed", run_command(packed_settings(work, folder))
    yield "Trainer", trainer_command(work, folder)
    yield "start", start_command(folder)


def line(row: dict[str, Any], goals: dict[str, float]) -> str:
    """One line of the table."""
    what = row["what"]
    if "ratio" not in row:
        return f"{what:<18}{row['wellread']:>12,.2f}{'':>22}   (goal: below {goals[what]:g})"
    least, most = row["ratios"]
    goal = f"; goal: {goals[what]:g}" if what in goals else ""
    return (
        f"{what:<18}{row['wellread']:>12,.2f}{row['peer']:>12,.2f}{row['ratio']:>10.2f}"
        f"   (from {least:.2f} to {most:.2f}{goal})"
    )


def measure(options: argparse.Namespace, work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table, or those that --only selects."""
    if options.only in (None, "train"):
        yield from training(work, folder, options.repeats)
    if options.only in (None, "start"):
        yield starting(folder, options.repeats)


def main() -> None:
    """Run the benchmark, or one of the processes that it measures."""
    if sys.argv[1:2] == ["peer"]:
        peer(Work(**json.loads(sys.argv[2])), Path(sys.argv[3]))
    else:
        bench()


def bench() -> None:
    """Measure; print the commands and a line per comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=("tiny", "pythia-70m"), help="shape of the model")
    parser.add_argument("--strategy", default="zero2", choices=("ddp", "zero1", "zero2", "zero3"))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16, help="samples per step, over all ranks")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="samples per forward pass of one rank")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--samples", type=int, help="samples of the epoch (default: 320, for pythia-70m 128)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per side")
    parser.add_argument("--only", choices=("train", "start"), help="measure only this")
    parser.add_argument("--data", type=Path, default=DATA, help="rows of Dolly, as JSONL")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Pythia's tokenizer.json")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    for file in (options.data, options.tokenizer):
        if not file.is_file():
            parser.error(f"{file}: not found; pass files with --data and --tokenizer")
    samples = options.samples or (320 if options.model == "tiny" else 128)
    sizes = {name: getattr(options, name) for name in ("model", "strategy", "ranks", "batch_size", "micro_batch_size")}
    work = Work(**sizes, seq_len=options.seq_len, samples=samples)
    with tempfile.TemporaryDirectory(prefix="wellread-trainer-") as name:
        folder = Path(name)
        make_model(folder / "model", work.model, options.tokenizer)
        make_data(work, options.data, folder)
        for what, command in commands(work, folder):
            print(f"{what}: {shlex.join(command)}")
        print(versions())
        print(f"threads per rank: {environment(work.ranks)['OMP_NUM_THREADS']}; {work}")
        print(f"{'':<18}{'wellread':>12}{'peer':>12}{'ratio':>10}", flush=True)
        rows = []
        for row in measure(options, work, folder):
            rows.append(row)
            print(line(row, GOALS), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"work": asdict(work), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
