"""Speed of the index of tokens and of tracing: CPU seconds, because other programs share the machine.

    python -m bench.trace [--json] [--tokens 4000000]

The index is over tokens whose frequencies follow a power law, as those of a text do. Traced are texts of 200 tokens
over the shipped sample set, all of which has been read, so that every text has spans; the index is open. Parts of 16
tokens of these texts are searched, as `wellread read --text` does, and their copies counted, with it and by a scan.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.read import Corpus
    from wellread.corpus.suffixes import Index

TEXTS, CALLS, LENGTH, PART = 30, 200, 200, 16
LIMITS = {"trace_ms": 10.0, "trace_with_readings_ms": 50.0}
"""Maximum values."""
LEAST = {"index_tokens_per_s": 2e6}
"""Minimum values."""


def milliseconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def indexing(directory: Path, n_tokens: int) -> dict[str, float]:
    """Tokens per CPU second of the process that writes an index, and the time to count 16 tokens."""
    from wellread.corpus import suffixes

    file, dtype = directory / "tokens.bin", np.dtype("<u2")
    (np.random.default_rng(0).zipf(1.3, n_tokens) % 50_000).astype(dtype).tofile(file)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    suffixes.build(file, dtype)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    array = suffixes.open_suffixes(file, dtype)
    window = np.asarray(array.tokens[1000:1016]).tolist()
    count = statistics.median(milliseconds(lambda: array.count(window)) for _ in range(CALLS))
    return {
        "index_tokens_per_s": n_tokens / used,
        "index_bytes_per_token": suffixes.index_file(file).stat().st_size / n_tokens,
        "count_ms": count,
    }


def tracing(directory: Path) -> dict[str, float]:
    """Median times to trace a text, without and with its readings."""
    from finetune.prepare import prepare
    from wellread.config import RunConfig
    from wellread.corpus import suffixes
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.read import Corpus
    from wellread.record.index import open_index
    from wellread.record.trace import Readings, Tracer

    corpus = Corpus.open(prepare(RunConfig.of(corpora=str(directory))))
    suffixes.build(corpus.path / "tokens.bin", np.dtype(corpus.meta["dtype"]))
    index = open_index(corpus)
    assert index is not None
    ids = np.arange(corpus.n_trainable)
    columns = ids, ids // 16, ids % 16, np.ones(ids.size, np.float32)
    readings = Readings.counted(corpus.n, lambda: [columns])
    tracer = Tracer(corpus, Decoder.load(corpus.tokenizer), readings, index.matches)
    long = np.flatnonzero(corpus.lengths(np.arange(corpus.n)) >= LENGTH)
    sample_ids = np.random.default_rng(0).choice(long, TEXTS, replace=False)
    texts = [tracer.decoder.decode(corpus.tokens(int(i))[:LENGTH].tolist()) for i in sample_ids]
    tracer.trace(texts[0], 6)  # reads what is read once
    traced = [milliseconds(lambda t=text: tracer.trace(t, 6)) for text in texts]  # type: ignore[misc]
    both = [milliseconds(lambda t=text: tracer.objects(tracer.trace(t, 6)[0])) for text in texts]  # type: ignore[misc]
    values = {"trace_ms": statistics.median(traced), "trace_with_readings_ms": statistics.median(both)}
    return values | searching(corpus, tracer.decoder, index, sample_ids)


def searching(corpus: Corpus, decoder: Decoder, index: Index, sample_ids: NDArray[np.int64]) -> dict[str, float]:
    """Median times to search the text of some tokens and to count their copies, with an open index and by a scan."""
    from wellread.record.copies import copies
    from wellread.record.search import search

    windows = [corpus.tokens(i)[LENGTH // 2 : LENGTH // 2 + PART] for i in sample_ids.tolist()]
    texts = [decoder.decode(window.tolist()) for window in windows]
    values = dict[str, float]()
    for name, of in (("indexed", index), ("scanned", None)):
        search(corpus, decoder, texts[0], index=of)  # reads what is read once
        searches = [milliseconds(lambda t=text, of=of: search(corpus, decoder, t, index=of)) for text in texts]  # type: ignore[misc]
        counts = [milliseconds(lambda w=window, of=of: copies(corpus, w, of)) for window in windows]  # type: ignore[misc]
        values |= {f"search_{name}_ms": statistics.median(searches), f"copies_{name}_ms": statistics.median(counts)}
    return values


def print_table(results: dict[str, float]) -> None:
    """Print each value with its limit."""
    for name, value in results.items():
        bound = f"at most {LIMITS[name]:g}" if name in LIMITS else f"at least {LEAST[name]:g}" if name in LEAST else ""
        print(f"{name:24}{value:16,.3f}  {bound}".rstrip())


def main() -> None:
    """Measure, then print the table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.trace", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="number of tokens that are indexed")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        results = indexing(Path(name), options.tokens) | tracing(Path(name))
    if options.json:
        print(json.dumps({"measured": results, "limits": LIMITS, "least": LEAST}))
    else:
        print_table(results)


if __name__ == "__main__":
    main()
