"""Speed beside Hugging Face's Trainer with DeepSpeed on rows of Dolly, and seconds to the first step.

    python -m bench.trainer [--model tiny | pythia-70m] [--strategy zero2] [--only train] [--json FILE]

Both sides train the same model (random weights, one file) on the same tokens and loss masks, with the same batch,
micro-batch, dtype, strategy, optimizer, ranks and threads, and neither saves while it is measured. The Trainer is given
what makes it fastest: samples grouped by length, dynamic padding, lengths and labels made beforehand, a worker that
collates, no logging. Sides take turns; rates are of an epoch without its first steps, and count tokens without padding.
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
"""Rows of Pythia's embedding: its tokenizer's tokens, rounded up."""
WARM = 3
"""First steps of an epoch that are not measured."""
GOALS = {"tokens/s": 1.2, "samples/s packed": 2.0, "seconds to step 1": 10.0}
"""Least ratios wellread / peer, and the most seconds from a command to its first step."""
Side = Callable[[], float]
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers")


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    model: str
    strategy: str
    ranks: int
    batch_size: int
    micro_batch_size: int
    seq_len: int
    samples: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch_size


@dataclass(frozen=True)
class Step:
    """One optimizer step, over all ranks."""

    ended: float
    """Seconds, on a clock of its side's own."""
    tokens: float
    """Without padding."""


def rate(steps: list[Step]) -> float:
    """Tokens per second of wall time after the first steps."""
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
    """Write the first rows of `data` that make `work.samples` samples to rows.jsonl; compile them."""
    rows = data.read_text().splitlines(keepends=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(rows[: work.samples + work.samples // 4]))
    made = np.sort([each[0] for each in compiled(work, folder).samples()["rows"].to_pylist()])
    if len(made) < work.samples:
        raise UserError(f"--samples {work.samples}: {data} makes no more than {len(made)}; choose fewer")
    shutil.rmtree(folder / "corpora")
    file.write_text("".join(rows[row - 1] for row in made[: work.samples]))


def compiled(work: Work, folder: Path) -> Corpus:
    """The corpus that runs of `work` read."""
    from finetune.prepare import prepare

    settings = run_settings(work, folder)
    return Corpus.open(prepare(RunConfig.of(**{name: settings[name] for name in RUN_DATA})))


# --- wellread --------------------------------------------------------------------------------------------------------


RUN_DATA = ("model", "data", "corpora", "seq_len", "holdout")
"""Settings of a run that say what it reads."""


def run_settings(work: Work, folder: Path) -> dict[str, Any]:
    """Settings of a run of one epoch, without any save but the last."""
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
    """The same epoch with samples packed, as many tokens a step."""
    tokens = work.samples * mean_length(work, folder)
    sequences = max(work.ranks, round(tokens / work.steps / work.seq_len / work.ranks) * work.ranks)
    steps = max(WARM + 1, int(tokens / work.seq_len / sequences))
    own = {"pack": True, "steps": steps, "batch_size": sequences, "save_every": steps, "log_every": steps}
    settings = run_settings(work, folder) | own
    del settings["micro_batch_size"]
    return settings


def run_command(settings: dict[str, Any], program: str = "finetune") -> list[str]:
    """The command of a run."""
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "launch", "run", program, *flags]


def wellread(settings: dict[str, Any], ranks: int, program: str = "finetune") -> float:
    """Tokens per second of a run, from its TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Path(settings["out"])
    call(run_command(settings, program), ranks)
    events = EventAccumulator(str(run / "tb"), {"scalars": 0})
    events.Reload()
    rates, seconds = (events.Scalars(f"speed/{name}") for name in ("tokens_per_second", "step_seconds"))
    shutil.rmtree(run)
    return rate([Step(a.wall_time, a.value * b.value) for a, b in zip(rates, seconds, strict=True)])


def seconds_to_step_1(folder: Path) -> float:
    """Seconds from the start of a command to the line of its first step."""
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
        raise RuntimeError(f"the run gave {process.returncode}, and its first step after {took} s")
    shutil.rmtree(folder / "run")
    return took


def start_command(folder: Path) -> list[str]:
    """The command of a run of `tiny` on the sample set, with its usual settings."""
    own = {"model": "tiny", "corpora": folder / "corpora", "out": folder / "run"}
    return run_command(own | {"steps": WARM, "save_every": WARM})


# --- the Trainer -----------------------------------------------------------------------------------------------------


def trainer_command(work: Work, folder: Path) -> list[str]:
    """The command that trains an epoch with the Trainer."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={work.ranks}"]
    return [*torchrun, "-m", "bench.trainer", "peer", json.dumps(asdict(work)), str(folder)]


def trainer(work: Work, folder: Path) -> float:
    """Tokens per second of the Trainer."""
    call(trainer_command(work, folder), work.ranks)
    return rate([Step(*each) for each in json.loads((folder / "peer.json").read_text())])


def peer(work: Work, folder: Path) -> None:
    """Train an epoch with the Trainer, in one rank of it; rank 0 leaves when each step ended, and its tokens."""
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
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            nonlocal tokens
            tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest, **named)

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
        found = [(ended, count) for (ended, _), count in zip(steps, counts.tolist(), strict=True)]
        (folder / "peer.json").write_text(json.dumps(found))


def training_arguments(work: Work, folder: Path) -> dict[str, Any]:
    """What the Trainer is told; its defaults where nothing is said."""
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
    """Rows for the Trainer: the corpus's own tokens, with labels of -100 where its mask carries no loss."""
    for sample in range(corpus.n_trainable):
        tokens = corpus.tokens(sample).astype(np.int64)
        labels = np.where(corpus.targets(sample), tokens, -100)
        yield {"input_ids": tokens.tolist(), "labels": labels.tolist(), "length": len(tokens)}


# --- both ------------------------------------------------------------------------------------------------------------


def environment(ranks: int) -> dict[str, str]:
    """Of both sides: no network, no GPU, the same threads."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions"),
        "NO_COLOR": "1",
    }


def call(command: list[str], ranks: int = 1) -> None:
    """Run a command to its end."""
    done = subprocess.run(command, cwd=ROOT, env=environment(ranks), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: gave {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")


def versions() -> str:
    """Versions of what both sides use."""
    return "versions: " + ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)


def take_turns(repeats: int, *sides: Side) -> Iterator[tuple[float, ...]]:
    """What each side gives, in turns."""
    for _ in range(repeats):
        yield tuple(side() for side in sides)


def compare(name: str, own: Side, others: Side, repeats: int, *, seconds: bool = False) -> dict[str, Any]:
    """Measure both in turns: medians, and the median of the ratios, above 1 where wellread is faster."""
    found = list(take_turns(repeats, own, others))
    ours, theirs = ([pair[i] for pair in found] for i in (0, 1))
    ratios = [b / a if seconds else a / b for a, b in found]
    return {
        "what": name,
        "wellread": statistics.median(ours),
        "peer": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }


def training(work: Work, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Rates of training, without and with packing."""
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
    """Tokens of a sample."""
    corpus = compiled(work, folder)
    return float(corpus.lengths(np.arange(corpus.n_trainable)).mean())


def starting(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds to the first step of a run whose corpus and whose code are in caches."""
    took = [seconds_to_step_1(folder) for _ in range(repeats + 1)][1:]
    return {"what": "seconds to step 1", "wellread": statistics.median(took)}


def commands(work: Work, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What is measured, by name."""
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
    """Every row of the table that is asked for."""
    if options.only in (None, "train"):
        yield from training(work, folder, options.repeats)
    if options.only in (None, "start"):
        yield starting(folder, options.repeats)


def main() -> None:
    """Measure, or be a process of the other side."""
    if sys.argv[1:2] == ["peer"]:
        peer(Work(**json.loads(sys.argv[2])), Path(sys.argv[3]))
    else:
        bench()


def bench() -> None:
    """Measure; print the commands and a line for each comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=("tiny", "pythia-70m"), help="whose shape is trained")
    parser.add_argument("--strategy", default="zero2", choices=("ddp", "zero1", "zero2", "zero3"))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16, help="samples of a step, over all ranks")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="samples of a forward pass of one rank")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--samples", type=int, help="of the epoch (default: 320, of pythia-70m 128)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--only", choices=("train", "start"), help="measure this alone")
    parser.add_argument("--data", type=Path, default=DATA, help="rows of Dolly, as JSONL")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Pythia's tokenizer.json")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args()
    for file in (options.data, options.tokenizer):
        if not file.is_file():
            parser.error(f"{file}: is no file; name your own with --data and --tokenizer")
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
        print(f"threads of each rank: {environment(work.ranks)['OMP_NUM_THREADS']}; {work}")
        print(f"{'':<18}{'wellread':>12}{'peer':>12}{'ratio':>10}", flush=True)
        rows = []
        for row in measure(options, work, folder):
            rows.append(row)
            print(line(row, GOALS), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"work": asdict(work), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
