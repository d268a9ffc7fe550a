"""Speed compared with Hugging Face's Trainer with DeepSpeed on rows of Dolly, and seconds to the first step.

    python -m bench.trainer [--model tiny | pythia-70m] [--strategy zero2] [--only train] [--json FILE]

Both sides train the same model (random weights, one file) on the same tokens and loss masks, with the same batch,
micro-batch, dtype, strategy, optimizer, ranks and threads, and neither saves during the measurement. The Trainer gets
its fastest settings: samples grouped by length, dynamic padding, precomputed lengths and labels, a worker for
collation, no logging. First, both sides read the same samples with the same weights: if their losses differ, the row
says so, and no time is measured. Then the sides take turns. Rates are those of an epoch without its first steps, in
tokens without padding. `bench.sft` compares with TRL in the same way.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers import losses
from bench.peers.losses import Losses, Reading, why_different
from bench.peers.training import STEPS, Epoch, train, training_arguments
from bench.peers.work import (
    WARM,
    Work,
    compiled,
    labeled,
    make_data,
    make_model,
    mean_length,
    packed_settings,
    run_settings,
)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data/dolly/databricks-dolly-12k.jsonl"
TOKENIZER = ROOT.parent / "shared/data/tokenizers/pythia_20B_tokenizer.json"
TOKENS, PACKED = "tokens/s", "samples/s packed"
GOALS = {TOKENS: 1.2, PACKED: 2.0, "seconds to step 1": 10.0}
"""Minimum ratios wellread / peer, and the maximum number of seconds from a command to its first step."""
COMPARED_STEPS = 4
"""Steps of the epoch whose losses are compared."""
Side = Callable[[], float]
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers")


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


# --- wellread --------------------------------------------------------------------------------------------------------


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


# --- a peer ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A side that wellread is compared with: a module that trains an epoch of `bench.peers.training`."""

    name: str
    module: str
    packed: bool = False
    packages: Path | None = None
    """Folder of packages that only the process of this peer imports."""

    def command(self, work: Work, folder: Path, *, compared: bool = False) -> list[str]:
        """The command that trains one epoch."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={work.ranks}"]
        flags = [name for name, enabled in (("packed", self.packed), ("compared", compared)) if enabled]
        return [*torchrun, "-m", self.module, "peer", json.dumps(asdict(work)), str(folder), *flags]

    def variables(self, ranks: int) -> dict[str, str]:
        """Environment of the command."""
        if self.packages is None:
            return environment(ranks)
        path = os.pathsep.join(filter(None, (str(self.packages), os.environ.get("PYTHONPATH"))))
        return environment(ranks) | {"PYTHONPATH": path}

    def rate(self, work: Work, folder: Path) -> float:
        """Tokens per second."""
        call(self.command(work, folder), work.ranks, self.variables(work.ranks))
        return rate([Step(*values) for values in json.loads((folder / STEPS).read_text())])

    def losses(self, work: Work, folder: Path) -> Losses:
        """Losses of an epoch that changes no weight."""
        call(self.command(work, folder, compared=True), work.ranks, self.variables(work.ranks))
        scores = losses.read(folder)
        for file in folder.glob("losses-*.json"):
            file.unlink()
        return scores


TRAINER = Peer("Trainer", "bench.trainer")


def peer(epoch: Epoch) -> None:
    """Train an epoch with the Trainer on this rank."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    settings = TrainingArguments(**training_arguments(epoch))
    tokenizer = AutoTokenizer.from_pretrained(epoch.folder / "model", trust_remote_code=False)
    train(
        Trainer,
        epoch,
        AutoModelForCausalLM.from_pretrained(epoch.folder / "model", trust_remote_code=False),
        settings,
        train_dataset=Dataset.from_list(list(labeled(compiled(epoch.work, epoch.folder)))),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
    )


# --- equal losses ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What both sides read once with the weights of the file, to compare the losses of its samples."""

    work: Work
    folder: Path

    @classmethod
    def make(cls, work: Work, data: Path, folder: Path) -> Comparison:
        """The first samples of the work, with the same model."""
        few = replace(work, samples=min(work.samples, COMPARED_STEPS * work.batch_size))
        inside = folder / "compared"
        inside.mkdir()
        (inside / "model").symlink_to(folder / "model")
        make_data(few, data, inside)
        return cls(few, inside)

    def why_missing(self, peer: Peer, *, packed: bool) -> str | None:
        """Why a peer cannot be compared with wellread, without or with packing; None if the losses are equal."""
        try:
            peer_losses = losses_of(peer, self)
        except RuntimeError as error:
            return f"{peer.name} has failed: {str(error).strip().splitlines()[-1]}"
        # One by one, also if the peer packs them: the mean of a packed row hides samples that see each other.
        reason = why_different(readings(self, packed=False), peer_losses)
        return why_different(readings(self, packed=True), peer_losses) if packed and not reason else reason


@cache
def losses_of(peer: Peer, comparison: Comparison) -> Losses:
    """What a peer reads."""
    return peer.losses(comparison.work, comparison.folder)


@cache
def readings(comparison: Comparison, *, packed: bool) -> list[Reading]:
    """What wellread records."""
    settings = (packed_settings if packed else run_settings)(comparison.work, comparison.folder)
    call(run_command(settings | {"optim.lr": losses.RATE}), comparison.work.ranks)
    recorded = losses.recorded(Path(settings["out"]))
    shutil.rmtree(settings["out"])
    return recorded


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


def rows_of(
    peer: Peer, packed_peer: Peer, comparison: Comparison, work: Work, folder: Path, repeats: int
) -> Iterator[dict[str, Any]]:
    """Training speed without and with packing, each row compared with its own peer, or the reason why it is missing."""
    mean = mean_length(work, folder)
    plain, packed = run_settings(work, folder), packed_settings(work, folder)
    reason = comparison.why_missing(peer, packed=False)
    yield (
        {"what": TOKENS, "missing": reason}
        if reason
        else compare(TOKENS, lambda: wellread(plain, work.ranks), lambda: peer.rate(work, folder), repeats)
    )
    reason = comparison.why_missing(packed_peer, packed=True)
    yield (
        {"what": PACKED, "missing": reason}
        if reason
        else compare(
            PACKED,
            lambda: wellread(packed, work.ranks) / mean,
            lambda: packed_peer.rate(work, folder) / mean,
            repeats,
        )
    )


def starting(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds to the first step of a run when its corpus and code are cached."""
    took = [seconds_to_step_1(folder) for _ in range(repeats + 1)][1:]
    return {"what": "seconds to step 1", "wellread": statistics.median(took)}


def commands(work: Work, folder: Path, *peers: Peer) -> Iterator[tuple[str, list[str]]]:
    """Names and commands of what is measured."""
    yield "wellread", run_command(run_settings(work, folder))
    yield "packed", run_command(packed_settings(work, folder))
    for peer in peers:
        yield peer.name, peer.command(work, folder)


def line(row: dict[str, Any], goals: dict[str, float]) -> str:
    """One line of the table."""
    what = row["what"]
    if "missing" in row:
        return f"{what:<18}missing: {row['missing']}"
    if "ratio" not in row:
        return f"{what:<18}{row['wellread']:>12,.2f}{'':>22}   (goal: below {goals[what]:g})"
    least, most = row["ratios"]
    goal = f"; goal: {goals[what]:g}" if what in goals else ""
    return (
        f"{what:<18}{row['wellread']:>12,.2f}{row['peer']:>12,.2f}{row['ratio']:>10.2f}"
        f"   (from {least:.2f} to {most:.2f}{goal})"
    )


def main() -> None:
    """Run the benchmark, or one of the processes that it measures."""
    if sys.argv[1:2] == ["peer"]:
        peer(Epoch.of(sys.argv[2:]))
    else:
        bench()


def options_of(program: str, description: str) -> argparse.ArgumentParser:
    """The options of a comparison on rows of Dolly."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description.splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=("tiny", "pythia-70m"), help="shape of the model")
    parser.add_argument("--strategy", default="zero2", choices=("ddp", "zero1", "zero2", "zero3"))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16, help="samples per step, over all ranks")
    parser.add_argument("--micro_batch_size", type=int, default=8, help="samples per forward pass of one rank")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--samples", type=int, help="samples of the epoch (default: 320, for pythia-70m 128)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per side")
    parser.add_argument("--data", type=Path, default=DATA, help="rows of Dolly, as JSONL")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Pythia's tokenizer.json")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def parsed(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Work]:
    """The options of the command line, and what is trained."""
    options = parser.parse_args()
    for file in (options.data, options.tokenizer):
        if not file.is_file():
            parser.error(f"{file}: not found; pass files with --data and --tokenizer")
    samples = options.samples or (320 if options.model == "tiny" else 128)
    sizes = {name: getattr(options, name) for name in ("model", "strategy", "ranks", "batch_size", "micro_batch_size")}
    return options, Work(**sizes, seq_len=options.seq_len, samples=samples)


@contextmanager
def prepared(options: argparse.Namespace, work: Work) -> Iterator[tuple[Path, Comparison]]:
    """A folder with the model and the rows, and those whose losses are compared."""
    with tempfile.TemporaryDirectory(prefix="wellread-trainer-") as name:
        folder = Path(name)
        make_model(folder / "model", work.model, options.tokenizer)
        make_data(work, options.data, folder)
        yield folder, Comparison.make(work, options.data, folder)


def show(
    options: argparse.Namespace,
    work: Work,
    measured: Iterable[dict[str, Any]],
    named_commands: Iterable[tuple[str, list[str]]],
    goals: dict[str, float],
) -> None:
    """Print the commands, then measure and print a line per comparison; write the file of --json."""
    for what, command in named_commands:
        print(f"{what}: {shlex.join(command)}")
    print(f"threads per rank: {environment(work.ranks)['OMP_NUM_THREADS']}; {work}")
    print(f"{'':<18}{'wellread':>12}{'peer':>12}{'ratio':>10}", flush=True)
    rows = []
    for row in measured:
        rows.append(row)
        print(line(row, goals), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"work": asdict(work), "rows": rows}, indent=1))


def measure(options: argparse.Namespace, comparison: Comparison, work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table, or those that --only selects."""
    if options.only in (None, "train"):
        yield from rows_of(TRAINER, TRAINER, comparison, work, folder, options.repeats)
    if options.only in (None, "start"):
        yield starting(folder, options.repeats)


def bench() -> None:
    """Compare with the Trainer, and measure the start."""
    parser = options_of("bench.trainer", __doc__ or "")
    parser.add_argument("--only", choices=("train", "start"), help="measure only this")
    options, work = parsed(parser)
    with prepared(options, work) as (folder, comparison):
        print(versions())
        named_commands = [*commands(work, folder, TRAINER), ("start", start_command(folder))]
        show(options, work, measure(options, comparison, work, folder), named_commands, GOALS)


if __name__ == "__main__":
    main()
