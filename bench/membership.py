"""Cost of membership scores on the samples of a run, compared with a forward pass that only computes losses.

    python -m bench.membership RUN [--samples 664] [--json]

Measured, each as the fastest of three: all token columns, one forward pass, a plain loop of one sample per batch. Then
without a model: scores for four values of k from kept columns, and their memory, for 4,000 and 16,000 samples.
"""

import argparse
import json
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
from wellread.corpus.read import Corpus
from wellread.models.load import load_model
from wellread.models.score import log_likelihoods, score_tokens
from wellread.run import RunDirectory
from wellread.tokens import Tokens

REPEATS = 3
NAMES = ["loss", "min_k", "min_k++"]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of the fastest of three calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def plain_loop(model: torch.nn.Module, corpus: Corpus, ids: np.ndarray) -> None:
    """Losses as a short script computes them: one sample at a time, all logits."""
    for sample_id in ids.tolist():
        row = torch.from_numpy(corpus.tokens(sample_id).astype(np.int64))[None]
        with torch.inference_mode():
            logp = model(input_ids=row).logits.float().log_softmax(-1)
        logp[0, :-1].gather(1, row[0, 1:, None]).mean()


def of_kept(tokens: Tokens, n: int) -> tuple[float, float]:
    """Seconds, and peak memory of numpy in MiB, of three scores with four values of k, for `n` samples like these."""
    with tempfile.TemporaryDirectory() as folder:
        file = TokenFile(Path(folder) / "tokens.parquet", {})
        parts = range(0, n, tokens.sample_id.size)
        file.write(replace(tokens, sample_id=np.arange(tokens.sample_id.size) + start) for start in parts)

        def compute() -> None:
            for start in range(0, n, 500):
                inputs = Inputs(tokens=file.read(np.arange(start, min(start + 500, n))))
                for column in columns(NAMES, [0.15, 0.25, 0.35, 0.45]):
                    column.score.values(inputs, column.k)

        duration = seconds(compute)
        tracemalloc.start()
        compute()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        return duration, peak


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=664)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run = RunDirectory.open(options.run)
    corpus = Corpus.open(run.corpus)
    ids = np.arange(min(options.samples, corpus.n))
    model = load_model(list_checkpoints(run.checkpoints)[-1].model)
    forward = seconds(lambda: log_likelihoods(model, corpus, ids))
    every = seconds(lambda: list(score_tokens(model, corpus, ids)))
    loop = seconds(lambda: plain_loop(model, corpus, ids))
    tokens = Tokens.joined(list(score_tokens(model, corpus, ids)))
    (duration, mib), (_, more_mib) = of_kept(tokens, 4000), of_kept(tokens, 16000)
    numbers = {
        "samples": ids.size,
        "forward_s": forward,
        "all_columns_s": every,
        "all_columns_over_forward": every / forward,
        "plain_loop_over_all_columns": loop / every,
        "another_k_4000_samples_s": duration,
        "another_k_4000_samples_mib": mib,
        "another_k_16000_samples_mib": more_mib,
    }
    print(
        json.dumps(numbers)
        if options.json
        else "\n".join(f"{name:28} {value:10.3f}" for name, value in numbers.items())
    )


if __name__ == "__main__":
    main()
