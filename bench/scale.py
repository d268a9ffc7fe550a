"""Cost at scale: preparing rows and text, and asking and verifying a long record.

    python -m bench.scale [--rows 10000,100000] [--text 10,100] [--readings 1000000] [--only KIND] [--json FILE]

Each line is one command in a process of its own: seconds, CPU seconds with those of its children, and the peak of
resident memory of its largest process. The rows and the text are generated. The record is that of a run over the first
rows, written batch by batch as training would, but without a model: the losses are random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.cpu import processor
from wellread.units import GIB

ROOT = Path(__file__).resolve().parent.parent
WORDS = 20_000
LETTERS = "eeetttaaooiinnsshhrrddlucmwfgypbvk"
LONGEST = 256
BATCH_SIZE = 1024
LIMIT_MIB = 1024
"""Goal: no command needs more memory."""
KINDS = ("rows", "text", "readings")


# --- what is prepared and asked --------------------------------------------------------------------------------------


@cache
def vocabulary() -> list[str]:
    """Made-up words of letters, all different."""
    rng = random.Random(1)
    return list(dict.fromkeys("".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(WORDS)))


def words(n: int, rng: random.Random) -> str:
    """A text of n made-up words, of which a few are frequent."""
    of = vocabulary()
    return " ".join(of[int(rng.paretovariate(0.7)) % len(of)] for _ in range(n))


def write_rows(path: Path, n: int) -> Path:
    """Write n instructions with answers, about as long as those of Dolly."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            row = {"instruction": f"{words(8, rng)} {i}?", "output": words(rng.randint(5, 50), rng)}
            file.write(json.dumps(row) + "\n")
    return path


def write_text(path: Path, n_bytes: int) -> Path:
    """Write stories with a separator between them, at least n_bytes in all."""
    rng = random.Random(0)
    stories = [words(180, rng) for _ in range(2000)]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n_bytes // 600 + 1):
            if file.tell() >= n_bytes:
                break
            file.write(f"{i} {stories[i % len(stories)]}\n<|endoftext|>\n")
    return path


def write_run(path: Path, config: Any, corpus_directory: Path, steps: int) -> Path:
    """Write a run that has read `steps` batches and saved checkpoints at the first and last step, without a model."""
    from wellread import checkpoint as checkpoints
    from wellread.config import to_dict
    from wellread.corpus import tokenizer
    from wellread.corpus.read import Corpus
    from wellread.files import with_checksum, write_json
    from wellread.models import registry
    from wellread.order.build import build
    from wellread.order.store import keep
    from wellread.planning.machine import Machine
    from wellread.planning.plan import Counts
    from wellread.planning.planner import make_plan
    from wellread.recipes.registry import recipe_of, resolve
    from wellread.record.chain import genesis
    from wellread.record.writer import RecordWriter
    from wellread.run import RunDirectory

    spec, corpus, run = registry.find(config.model.name), Corpus.open(corpus_directory), RunDirectory(path)
    run.checkpoints.mkdir(parents=True)
    config = resolve(config, spec)
    built = build(config.schedule, corpus)
    counts = Counts(
        samples=corpus.n,
        trainable=corpus.n_trainable,
        sealed=corpus.n - corpus.n_trainable,
        exact=True,
        pass_samples=built.pass_samples,
    )
    plan = make_plan(config, spec, Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu"), counts)
    identity = {
        "model": "weights:" + "0" * 32, "corpus": corpus.hash, "order": built.order.identity(),
        "batch_size": plan.batch_size, "seq_len": plan.seq_len, "seed": config.schedule.seed, "steps": plan.steps,
        "dtype": plan.dtype, "optim": to_dict(config.optim),
    } | recipe_of(config).identity(config)  # fmt: skip
    run.write_config(config)
    keep(run, built)
    (run.path / "corpus").symlink_to(corpus.path)
    write_json(run.plan_file, with_checksum(plan.as_dict()))
    attempt = {
        "attempt": 1, "started": "2026-01-01T00:00:00+0000", "ended": "2026-01-01T00:00:00+0000", "exit_code": 0,
        "cluster": "local", "strategy": plan.strategy, "ranks": 1, "nodes": 1, "ranks_per_node": 1, "device": "cpu",
        "hosts": ["localhost"], "host": "localhost", "python": platform.python_version(),
        "platform": platform.platform(), "packages": {}, "code": {"commit": None},
    }  # fmt: skip
    write_json(run.manifest_file, with_checksum({"version": 1, "identity": identity, "attempts": [attempt]}))
    writer, tokens = RecordWriter(run.record, start=genesis(corpus.hash, built.order.identity())), 0
    for step in (0, steps):
        tokens += _read(writer, corpus, built.order, step)
        writer.flush()
        model = checkpoints.staging(run.checkpoints, step) / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_text(f"weights at {step}")
        tokenizer.copy_files(corpus.tokenizer, model)
        about = {
            "step": step, "tokens": tokens, "skipped": 0, "record": {"head": writer.head, "batches": [0, step]},
            "corpus": corpus.hash, "identity": identity, "strategy": plan.strategy, "ranks": 1, "dtype": plan.dtype,
            "holdout_loss": None,
        }  # fmt: skip
        checkpoints.commit(run.checkpoints, step, about)
    return path


def curriculum(folder: Path, steps: int) -> str:
    """Two phases, and two samples that are read only in the second and the last batch; a value of --order."""
    path = folder / f"curriculum-{steps}.yaml"
    path.write_text(
        f"phases:\n  - {{order: shuffle, steps: {steps // 2}}}\n"
        f"  - {{order: sequential, steps: {steps - steps // 2}}}\n"
        f"insert:\n  - {{tag: two, samples: [3, 5], at: [1, {steps - 1}]}}\n"
    )
    return f"curriculum:{path}"


def _read(writer: Any, corpus: Any, order: Any, stop: int) -> int:
    """Record the batches up to `stop`; return the number of their tokens."""
    from wellread.record.writer import RecordedBatch

    if not stop:
        return 0
    rng, tokens = np.random.default_rng(0), 0
    digests = corpus.samples(["digest"])["digest"].to_pylist()
    targets = corpus.n_targets(np.arange(corpus.n))
    size = order.batch_size
    for batch_id in range(stop):
        ids = order.batch(batch_id)
        writer.append(
            RecordedBatch(
                batch_id=batch_id,
                sample_ids=ids,
                epochs=order.epochs(batch_id * size + np.arange(size)),
                n_targets=targets[ids],
                losses=rng.normal(3, 0.3, size).astype(np.float32),
                digests=[digests[i] for i in ids.tolist()],
            )
        )
        tokens += int(corpus.lengths(ids).sum())
    return tokens


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(name: str, command: list[str]) -> dict[str, Any]:
    """Run a command; return its seconds, CPU seconds and peak memory, MiB of its largest process.

    Raises
    ------
    RuntimeError
        When it fails.
    """
    script = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
        "print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )  # a process of its own: the usage of children adds up over all that have ended
    began = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    code, cpu, peak = json.loads(output.stdout)
    if code:
        raise RuntimeError(f"{shlex.join(command)} ended with {code}: {output.stderr[-2000:]}")
    return {
        "name": name, "command": shlex.join(command), "seconds": time.perf_counter() - began, "cpu_seconds": cpu,
        "peak_mib": peak,
    }  # fmt: skip


def program(module: str, *arguments: object) -> list[str]:
    """Command line of a program."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def prepared(folder: Path, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """Prepare rows for a fine-tuning."""
    for n in sizes:
        data = write_rows(folder / f"rows-{n}.jsonl", n)
        yield measure(f"{n:,} rows", program("finetune", "prepare", *_settings(data, folder / "corpora")))


def _settings(data: Path, corpora: Path) -> list[str]:
    return [f"--data=alpaca@{data}", "--model=tiny", f"--seq_len={LONGEST}", f"--corpora={corpora}"]


def prepared_text(folder: Path, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """Prepare text for a pretraining."""
    for n in sizes:
        data = write_text(folder / f"text-{n}.txt", n * 1_000_000)
        arguments = (f"--data={data}", "--size=8x1x2", "--vocab=4096", f"--seq_len={LONGEST}")
        yield measure(f"{n:,} MB of text", program("pretrain", "prepare", *arguments, f"--corpora={folder / 'text'}"))
        shutil.rmtree(folder / "text")
        data.unlink()


def queried(folder: Path, rows: int, sizes: list[int], phases: bool) -> Iterator[dict[str, Any]]:
    """Verify and read runs with long records over a corpus of `rows` rows; with `phases`, of a curriculum."""
    from wellread.config import RunConfig

    data = write_rows(folder / f"rows-{rows}.jsonl", rows)
    call = program("finetune", "prepare", *_settings(data, folder / "queried"))
    subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (corpus,) = (path.parent for path in (folder / "queried").glob("*/corpus.json"))
    for n in sizes:
        steps, path = n // BATCH_SIZE, folder / f"run-{n}"
        config = RunConfig.of(
            model="tiny", data=f"alpaca@{data}", seq_len=LONGEST, corpora=str(folder / "queried"), out=str(path),
            steps=steps, batch_size=BATCH_SIZE, strategy="ddp", dtype="fp32",
            order=curriculum(folder, steps) if phases else "shuffle",
        )  # fmt: skip
        write_run(path, config, corpus, steps)
        size = sum(file.stat().st_size for file in (path / "record").iterdir())
        print(f"# {n:,} readings: {size / GIB:.2f} GiB on disk", flush=True)
        for name, flags in QUESTIONS.items():
            often, seldom = vocabulary()[1], vocabulary()[-1]
            arguments = [flag.format(last=steps, batch=steps - 1, often=often, seldom=seldom) for flag in flags]
            yield measure(f"{name}, {n:,}", program("wellread", "read", path, *arguments))
        yield measure(f"verify, {n:,}", program("wellread", "verify", path))
        shutil.rmtree(path)


QUESTIONS = {
    "read --checkpoint": ("--checkpoint", "{last}"),
    "read --batch": ("--batch", "{batch}"),
    "read --sample": ("--sample", "7"),
    "read --text, a rare word": ("--text", " {seldom} "),
    "read --text, a frequent word": ("--text", "{often}"),
    "read --csv": ("--csv",),
}
"""The queries of each record."""


def machine() -> str:
    """Name of the processor, its cores, and the load."""
    return f"{processor()[0]}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.2f}"


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def main() -> None:
    """Measure, and print a line per command."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=_numbers, default=[10_000, 100_000], help="numbers of rows")
    parser.add_argument("--text", type=_numbers, default=[10, 100], help="megabytes of text")
    parser.add_argument("--readings", type=_numbers, default=[1_000_000, 10_000_000], help="recorded readings")
    parser.add_argument("--of_rows", type=int, default=10_000, help="rows that the recorded runs read")
    parser.add_argument("--curriculum", action="store_true", help="the recorded runs have a curriculum")
    parser.add_argument("--only", choices=KINDS, help="measure only one kind")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(f"# {machine()}")
    print(f"{'':40}{'seconds':>10}{'CPU s':>10}{'MiB':>8}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wellread-scale-") as name:
        work = {
            "rows": prepared(Path(name), options.rows),
            "text": prepared_text(Path(name), options.text),
            "readings": queried(Path(name), options.of_rows, options.readings, options.curriculum),
        }
        for kind in [options.only] if options.only else KINDS:
            for row in work[kind]:
                rows.append(row)
                over = "  above the goal" if row["peak_mib"] > LIMIT_MIB else ""
                print(f"{row['name']:40}{row['seconds']:10.1f}{row['cpu_seconds']:10.1f}{row['peak_mib']:8.0f}{over}")
                sys.stdout.flush()
    print(f"# {machine()}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
