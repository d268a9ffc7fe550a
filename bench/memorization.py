"""Cost of extraction: CPU seconds, because other programs share the machine.

    python -m bench.memorization RUN [--samples 2000] [--generated 128] [--json]

Samples are 96 random tokens: a prefix of 32, a suffix of 32, and 32 that follow. Compared are the pass that computes
token columns; the same pass and extraction from the columns it has kept on disk, as `wellread memorization` does; and
greedy generation of the suffixes without a cache of keys and values, of fewer samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIX, SUFFIX, LENGTH, REPEATS = 32, 32, 96, 3
BATCH = 32
"""Prefixes that are continued together."""
LIMITS = {"extraction_over_scoring": 1.1}
"""Maximum values."""
LEAST = {"generation_over_extraction": 10.0}
"""Minimum values."""


class Texts:
    """Samples of random tokens, of which all but the first are targets."""

    longest = LENGTH

    def __init__(self, n: int, vocabulary: int) -> None:
        self.ids = np.random.default_rng(0).integers(0, vocabulary, (n, LENGTH))

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of one sample."""
        return np.asarray(self.ids[sample_id])

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """Loss mask of one sample."""
        return np.arange(LENGTH) > 0

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """First token of each segment of one sample."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        return np.full(len(sample_ids), LENGTH)


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU time of the fastest call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def measured(run: str, n: int, n_generated: int) -> dict[str, float]:
    """Times of scoring, extraction and generation with the last model of a run."""
    import torch

    from eval.kept import by_part
    from eval.memorization.extraction import Suffixes
    from eval.token_store import TokenFile
    from wellread.checkpoint import list_checkpoints
    from wellread.models.generate import greedy
    from wellread.models.load import load_model
    from wellread.models.loss import next_logits
    from wellread.models.score import score_tokens
    from wellread.run import RunDirectory

    model = load_model(list_checkpoints(RunDirectory.open(run).checkpoints)[-1].model)
    model.eval()
    configuration: Any = model.config
    texts = Texts(n, int(configuration.vocab_size))
    ids = np.arange(n)

    def extract(file: TokenFile) -> None:
        Suffixes.joined([Suffixes.of(tokens, PREFIX - 1, SUFFIX) for tokens in by_part(file, texts, ids)])

    def generate() -> None:
        prompts = texts.ids[:n_generated, :PREFIX].tolist()
        with torch.inference_mode():
            for start in range(0, n_generated, BATCH):
                part = prompts[start : start + BATCH]
                greedy(lambda a, b: next_logits(model, a, b), part, new_tokens=SUFFIX, longest=LENGTH, end=None)

    with tempfile.TemporaryDirectory() as folder:
        file = TokenFile(Path(folder) / "tokens.parquet", {})
        file.write(score_tokens(model, texts, ids))
        scoring = seconds(lambda: list(score_tokens(model, texts, ids)))
        arithmetic = seconds(lambda: extract(file))
    generation = seconds(generate, 1) * n / n_generated
    return {
        "samples": n,
        "scoring_s": scoring,
        "extraction_from_columns_s": arithmetic,
        "extraction_over_scoring": (scoring + arithmetic) / scoring,
        "generation_s": generation,
        "generation_over_extraction": generation / (scoring + arithmetic),
    }


def main() -> int:
    """Print the numbers; return 1 if one misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    numbers = measured(options.run, options.samples, options.generated)
    lines = [f"{name:28} {value:10.3f}" for name, value in numbers.items()]
    print(json.dumps(numbers) if options.json else "\n".join(lines))
    high = [name for name, limit in LIMITS.items() if numbers[name] > limit]
    return int(bool(high or [name for name, limit in LEAST.items() if numbers[name] < limit]))


if __name__ == "__main__":
    raise SystemExit(main())
