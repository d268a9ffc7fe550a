"""Cost of membership scores on the samples of a run, compared with a forward pass that only computes losses.

    python -m bench.membership RUN [--samples 664] [--rounds 5] [--threads 1] [--json]

All times are CPU seconds of this process, so other programs hardly change them. The model runs in rounds, one call of
each kind after the other: all token columns, also in bf16, a forward pass with losses only, two plain loops of one
sample per batch (losses only, and all columns as a short script computes them), a step of training (forward and
backward); each value is the median over rounds. Then without a model: scores for four
values of k from kept columns, and their memory, for 4,000 and 16,000 samples.
"""

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eval.membership.scores import Inputs, columns
from eval.token_store import TokenFile
from wellread.checkpoint import list_checkpoints
from wellread.corpus.batch import collate
from wellread.corpus.read import Corpus
from wellread.models.load import load_model
from wellread.models.loss import sample_losses
from wellread.models.score import by_length, log_likelihoods, score_tokens
from wellread.run import RunDirectory
from wellread.tokens import Tokens

NAMES = ["loss", "min_k", "min_k++"]


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of all threads during a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_rounds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each round; one call follows the other, so both sides of a ratio are alike.

    The first round, in which kernels are prepared, is left out.
    """
    times = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    return {name: [each[name] for each in times] for name in calls}


def plain_loop(model: torch.nn.Module, corpus: Corpus, ids: np.ndarray) -> None:
    """Losses as a short script computes them: one sample at a time, all logits."""
    for sample_id in ids.tolist():
        row = torch.from_numpy(corpus.tokens(sample_id).astype(np.int64))[None]
        with torch.inference_mode():
            logp = model(input_ids=row).logits.float().log_softmax(-1)
        logp[0, :-1].gather(1, row[0, 1:, None]).mean()


def plain_columns(model: torch.nn.Module, corpus: Corpus, ids: np.ndarray) -> None:
    """All columns as a short script computes them: one sample at a time, from the probabilities of all tokens."""
    for sample_id in ids.tolist():
        row = torch.from_numpy(corpus.tokens(sample_id).astype(np.int64))
        with torch.inference_mode():
            logp = model(input_ids=row[None]).logits[0, :-1].float().log_softmax(-1)
        p, label = logp.exp(), logp.gather(1, row[1:, None])
        mu = (p * logp).sum(1)
        (p * (logp - mu[:, None]).square()).sum(1).sqrt()
        (logp > label).sum(1)
        p.topk(40).values.sum(1).log()


def training(model: torch.nn.Module, corpus: Corpus, ids: np.ndarray) -> None:
    """Forward and backward over the samples in batches, without an optimizer."""
    for places in by_length(corpus.lengths(ids), 8192):
        batch = collate(corpus, ids[places])
        sample_losses(model, *batch.inputs).sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)


def of_kept(tokens: Tokens, n: int) -> tuple[float, float]:
    """CPU seconds, and peak MiB of numpy, of three scores with four values of k, for `n` samples like these."""
    with tempfile.TemporaryDirectory() as folder:
        file = TokenFile(Path(folder) / "tokens.parquet", {})
        parts = range(0, n, tokens.sample_id.size)
        file.write(replace(tokens, sample_id=np.arange(tokens.sample_id.size) + start) for start in parts)

        def compute() -> None:
            for start in range(0, n, 500):
                inputs = Inputs(tokens=file.read(np.arange(start, min(start + 500, n))))
                for column in columns(NAMES, [0.15, 0.25, 0.35, 0.45]):
                    column.values(inputs)

        duration = min(cpu_seconds(compute) for _ in range(3))
        tracemalloc.start()
        compute()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        return duration, peak


def measure(model: torch.nn.Module, corpus: Corpus, ids: np.ndarray, rounds: int) -> dict[str, float]:
    """All numbers of the table."""
    times = in_rounds(
        {
            "forward": lambda: log_likelihoods(model, corpus, ids),
            "columns": lambda: list(score_tokens(model, corpus, ids)),
            "columns_bf16": lambda: list(score_tokens(model, corpus, ids, dtype="bf16")),
            "loop": lambda: plain_loop(model, corpus, ids),
            "loop_columns": lambda: plain_columns(model, corpus, ids),
            "training": lambda: training(model, corpus, ids),
        },
        rounds,
    )

    def ratio(above: str, below: str) -> float:
        return float(np.median(np.divide(times[above], times[below])))

    tokens = Tokens.joined(list(score_tokens(model, corpus, ids)))
    (duration, mib), (_, more_mib) = of_kept(tokens, 4000), of_kept(tokens, 16000)
    return {
        "samples": ids.size,
        "forward_s": float(np.median(times["forward"])),
        "all_columns_s": float(np.median(times["columns"])),
        "all_columns_over_forward": ratio("columns", "forward"),
        "plain_loop_over_all_columns": ratio("loop", "columns"),
        "plain_loop_with_columns_over_all_columns": ratio("loop_columns", "columns"),
        "plain_loop_with_columns_over_bf16": ratio("loop_columns", "columns_bf16"),
        "forward_over_training": ratio("forward", "training"),
        "another_k_4000_samples_s": duration,
        "another_k_4000_samples_mib": mib,
        "another_k_16000_samples_mib": more_mib,
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=664)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = RunDirectory.open(options.run)
    corpus = Corpus.open(run.corpus)
    ids = np.arange(min(options.samples, corpus.n))
    model = load_model(list_checkpoints(run.checkpoints)[-1].model)
    numbers = measure(model, corpus, ids, options.rounds)
    print(
        json.dumps(numbers)
        if options.json
        else "\n".join(f"{name:41} {value:10.3f}" for name, value in numbers.items())
    )


if __name__ == "__main__":
    main()
