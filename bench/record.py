"""Cost of the record: time per training step, per look-up and per verified sample, and bytes on disk.

    python -m bench.record [--json] [--samples 10000000]

Some values are printed with a limit. The step is a real one of the tiny model, so the record's share is close to its
maximum: digests, gathering, chain and append are timed inside it, and the time for writing a part is divided by its
number of batches. The look-ups use a corpus header of 146 million samples, Pythia's size, in a sparse file.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wellread.order.permutation import Order
from wellread.units import GIB

PYTHIA_SAMPLES = 146_000_000
PYTHIA_TOKENS = 300_000_000_000
BATCH_SIZE = 1024
CORPUS_SAMPLES = 1_000_000
CALLS = 1000
STEPS, WARM_UP = 60, 10
LIMITS = {
    "overhead_of_step": 0.01,
    "batch_ms": 1.0,
    "lengths_ms": 1.0,
    "locate_ms": 1.0,
    "lookup_growth_mib": 16.0,
    "verify_s": 60.0,
}
"""Maximum values: a share of the step's time, milliseconds, MiB, seconds."""


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- a real step -----------------------------------------------------------------------------------------------------


def step_overhead(directory: Path) -> dict[str, float]:
    """Time of a step of the tiny model on one rank, and the time that the record adds to it."""
    from finetune.prepare import prepare
    from wellread.config import RunConfig
    from wellread.corpus.read import Corpus
    from wellread.models.load import initial
    from wellread.models.registry import find
    from wellread.planning.machine import Machine
    from wellread.planning.plan import Counts
    from wellread.planning.planner import make_plan
    from wellread.recipes.registry import resolve
    from wellread.record.chain import genesis
    from wellread.record.writer import RecordWriter
    from wellread.train import ranks
    from wellread.train.engines.choose import make_engine

    spec = find("tiny")
    config = resolve(RunConfig.of(model="tiny", corpora=str(directory)), spec)
    corpus = Corpus.open(prepare(config))
    counts = Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)
    device = "cuda" if ranks.device().type == "cuda" else "cpu"
    plan = make_plan(config, spec, Machine(cluster="local", nodes=1, ranks_per_node=1, device=device), counts)
    order = Order(kind="shuffle", seed=0, n=corpus.n_trainable, batch_size=plan.batch_size)
    engine = make_engine(initial(spec, 0, 0), config, plan)
    writer = RecordWriter(directory / "step-record", start=genesis(corpus.hash, order.identity()))
    loop = SimpleNamespace(plan=plan, order=order, corpus=corpus, engine=engine, step=0)
    total, record = zip(*(_step(loop, writer) for _ in range(STEPS)), strict=True)
    flush = seconds(writer.flush) / STEPS
    step, added = statistics.median(total[WARM_UP:]), statistics.median(record[WARM_UP:]) + flush
    return {
        "step_ms": step * 1e3,
        "record_ms": added * 1e3,
        "of_which_writing_ms": flush * 1e3,
        "overhead_of_step": added / step,
    }


def _step(loop: Any, writer: Any) -> tuple[float, float]:
    """One batch as the loop reads it; total seconds, and seconds that only the record needs."""
    from wellread.corpus.batch import collate
    from wellread.train import evidence
    from wellread.train.micro_batches import divide
    from wellread.train.watch.throughput import Cost, memory_peaks

    began = time.perf_counter()
    ids = loop.order.batch(loop.step)
    targets, read = int(loop.corpus.n_targets(ids).sum()), []
    micro = divide(loop.corpus.lengths(ids), loop.plan, 0)
    for number, slots in enumerate(micro):
        batch = collate(loop.corpus, ids[slots], loop.plan.machine.device).to(loop.engine.device)
        read.append((slots, batch, loop.engine.forward_backward(batch, 1 / targets, number == len(micro) - 1)))
    if loop.engine.device.type == "cuda":
        read[-1][2].sum().item()  # wait for the device, so that its work does not count for the record
    start = time.perf_counter()
    samples = np.concatenate([evidence.of_micro_batch(*micro_batch) for micro_batch in read])
    gathered = evidence.gather(evidence.of_rank(0, memory_peaks()), samples, batch_size=loop.plan.batch_size)
    reading, _ = gathered.reading(loop.step, loop.order), Cost.of(gathered, loop.plan)
    record = time.perf_counter() - start
    loop.engine.step(1e-4)
    start = time.perf_counter()
    writer.append(reading)
    record += time.perf_counter() - start
    loop.step += 1
    return time.perf_counter() - began, record


# --- look-ups --------------------------------------------------------------------------------------------------------


def lookups(directory: Path) -> dict[str, float]:
    """Median milliseconds to look up a batch, its samples' lengths and a sample's readings, and the memory for it."""
    from wellread.corpus.read import Corpus

    corpus = Corpus.open(sparse_corpus(directory / "corpus", PYTHIA_SAMPLES))
    order = Order(kind="shuffle", seed=0, n=corpus.n_trainable, batch_size=BATCH_SIZE)
    steps = order.steps(3)
    rng = np.random.default_rng(0)
    batch_ids, samples = rng.integers(steps, size=CALLS).tolist(), rng.integers(order.n, size=CALLS).tolist()
    order.batch(0), order.locate(0, batches=steps), corpus.lengths(order.batch(0))
    before = anonymous_mib()
    batch = [seconds(lambda k=k: order.batch(k)) for k in batch_ids]  # type: ignore[misc]
    locate = [seconds(lambda s=s: order.locate(s, batches=steps)) for s in samples]  # type: ignore[misc]
    read = [order.batch(k) for k in batch_ids[: CALLS // 10]]
    lengths = [seconds(lambda ids=ids: corpus.lengths(ids)) for ids in read]  # type: ignore[misc]
    return {
        "batch_ms": statistics.median(batch) * 1e3,
        "lengths_ms": statistics.median(lengths) * 1e3,
        "locate_ms": statistics.median(locate) * 1e3,
        "lookup_growth_mib": anonymous_mib() - before,
        "header_gib": (corpus.path / "offsets.npy").stat().st_size / GIB,
    }


def sparse_corpus(path: Path, n: int) -> Path:
    """Write the header of a corpus of n empty samples; its offsets are a sparse file, which needs no disk space."""
    path.mkdir()
    for name, shape in {"offsets.npy": (n + 1,), "target_offsets.npy": (n + 1,), "targets.npy": (0, 2)}.items():
        with open(path / name, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + 8 * int(np.prod(shape)))
    (path / "tokens.bin").touch()
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    meta = {"hash": "sparse", "dtype": "<u2", "counts": {"samples": n, "trainable": n}, "sizes": sizes}
    (path / "corpus.json").write_text(json.dumps(meta))
    return path


def anonymous_mib() -> float:
    """Anonymous resident memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


# --- verification and size -------------------------------------------------------------------------------------------


def verification(directory: Path, samples: int) -> dict[str, float]:
    """Write a record of `samples` readings, hash its parts and recompute its chain: seconds, bytes, peak memory."""
    from wellread.record.chain import genesis
    from wellread.record.findings import Findings
    from wellread.record.reader import Record
    from wellread.record.verify_record import check_parts, walk

    order = Order(kind="shuffle", seed=0, n=CORPUS_SAMPLES, batch_size=BATCH_SIZE)
    digests = np.random.default_rng(0).integers(256, size=(CORPUS_SAMPLES, 16), dtype=np.uint8)
    start = genesis("bench", order.identity())
    writing = seconds(lambda: _write_record(directory / "record", order, digests, start, samples // BATCH_SIZE))
    record = Record.open(directory / "record")
    size = sum(path.stat().st_size for path in record.directory.iterdir())
    findings = Findings()
    equal: Any = _EqualSamples()
    before = anonymous_mib()
    hashing = seconds(lambda: check_parts(findings, record, start, BATCH_SIZE))
    walking = seconds(lambda: walk(findings, record, equal, order, digests, start, [record.batches]))
    if findings.problems:
        raise AssertionError(findings.problems[:3])
    rows = record.batches * BATCH_SIZE
    return {
        "rows": rows,
        "write_s": writing,
        "hash_s": hashing,
        "walk_s": walking,
        "verify_s": (hashing + walking) * 10_000_000 / rows,
        "verify_growth_mib": anonymous_mib() - before,
        "bytes_per_sample": size / rows,
    }


class _EqualSamples:
    """What `walk` needs of a corpus whose samples all have 2,049 tokens."""

    n = CORPUS_SAMPLES

    def n_targets(self, ids: Any) -> Any:
        """Scored tokens of each sample."""
        return np.full(len(ids), 2048)

    def lengths(self, ids: Any) -> Any:
        """Tokens of each sample."""
        return np.full(len(ids), 2049)

    def release(self) -> None:
        """No file is mapped."""


def _write_record(directory: Path, order: Order, digests: Any, start: str, batches: int) -> None:
    from wellread.record.writer import RecordedBatch, RecordWriter

    writer = RecordWriter(directory, start=start)
    rng = np.random.default_rng(1)
    for batch_id in range(batches):
        ids = order.batch(batch_id)
        writer.append(
            RecordedBatch(
                batch_id=batch_id,
                sample_ids=ids,
                epochs=order.epochs(np.arange(batch_id * BATCH_SIZE, (batch_id + 1) * BATCH_SIZE)),
                n_targets=np.full(BATCH_SIZE, 2048),
                losses=rng.normal(3, 0.3, BATCH_SIZE).astype(np.float32),
                digests=[row.tobytes() for row in digests[ids]],
            )
        )
    writer.flush()


def at_pythia_scale(results: dict[str, float]) -> dict[str, float]:
    """Extrapolated cost of 300 billion tokens, which are 146 million samples of 2,049."""
    share = PYTHIA_SAMPLES / results["rows"]
    return {
        "record_gib": results["bytes_per_sample"] * PYTHIA_SAMPLES / GIB,
        "verify_min": (results["hash_s"] + results["walk_s"]) * share / 60,
        "write_min": results["write_s"] * share / 60,
        "bytes_of_token_bytes": results["bytes_per_sample"] * PYTHIA_SAMPLES / (2 * PYTHIA_TOKENS),
    }


# --- the table -------------------------------------------------------------------------------------------------------


def print_table(results: dict[str, float], scaled: dict[str, float]) -> None:
    """Print each value and, if it has a limit, the share of the limit that it uses."""
    for name, value in results.items():
        limit = LIMITS.get(name)
        used = "" if limit is None else f"{value / limit:8.2f} of the limit {limit:g}"
        print(f"{name:22}{value:16,.4f}{used}")
    print(f"at {PYTHIA_TOKENS:,} tokens ({PYTHIA_SAMPLES:,} samples):")
    for name, value in scaled.items():
        print(f"  {name:20}{value:16,.4f}")


def _start_single_rank() -> None:
    """Start a process group with a single rank, so that gathering costs the same as in a run."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore  # a store that needs no port

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)


def main() -> None:
    """Measure, then print the table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--samples", type=int, default=10_000_000, help="number of readings in the verified record")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        results = lookups(directory) | verification(directory, options.samples)
        _start_single_rank()
        results = step_overhead(directory) | results
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scaled = at_pythia_scale(results)
    if options.json:
        print(json.dumps({"found": results, "limits": LIMITS, "at_pythia_scale": scaled}))
    else:
        print_table(results, scaled)


if __name__ == "__main__":
    main()
