"""Speed of preparing stories: pieces beside SentencePiece's own call per story, and text metrics.

    python -m bench.stories [--data FILE] [--vocab FILE.model] [--json]

Pieces are cut on one core, on the same texts in the same run, and must be equal. "first" begins with an empty memory of
words, "then" goes over the texts again, as later shards of a large set do. Metrics are measured in two processes.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sentencepiece

from wellread.corpus import sentencepiece as pieces
from wellread.corpus.sentencepiece import Pieces
from wellread.data import documents, sets
from wellread.data.text_metrics import measure

ROUNDS = 5
WORKERS = 2
CHUNK = 500
ENOUGH = 20_000
"""Stories that metrics are measured on; the data is repeated up to there."""


def texts_of(data: str) -> list[str]:
    """All stories of a set that can be used."""
    return [found.text for _, found in documents.read(sets.documents(data)) if not isinstance(found, str)]


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cutting(texts: Sequence[str], model: bytes) -> dict[str, float]:
    """Megabytes per second and core, both ways, and the ratios; the best of some rounds that take turns."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = sum(len(text.encode()) for text in texts) / 1e6
    theirs, first, then = [], [], []
    for _ in range(ROUNDS):
        cut = Pieces(model)
        assert cut.by_word  # its model is read, which is no part of the work
        theirs.append(seconds(lambda: [processor.encode(text) for text in texts]))
        first.append(seconds(lambda cut=cut: [cut.encode(text) for text in texts]))  # type: ignore[misc]
        then.append(seconds(lambda cut=cut: [cut.encode(text) for text in texts]))  # type: ignore[misc]
    assert all(cut.encode(text).tolist() == processor.encode(text) for text in texts)
    return {
        "mb": size,
        "sentencepiece_mb_per_s": size / min(theirs),
        "first_mb_per_s": size / min(first),
        "then_mb_per_s": size / min(then),
        "first_over_sentencepiece": min(theirs) / min(first),
        "then_over_sentencepiece": min(theirs) / min(then),
    }


def _measured(texts: list[str], sentiment: bool) -> int:
    return len(measure(texts, sentiment=sentiment))


def measuring(texts: Sequence[str]) -> dict[str, float]:
    """Stories per second on two cores, without sentiment and with it."""
    many = (list(texts) * -(-ENOUGH // len(texts)))[:ENOUGH]
    chunks = [many[i : i + CHUNK] for i in range(0, len(many), CHUNK)]
    found = {}
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for _ in pool.map(_measured, chunks[: 2 * WORKERS], [True] * 2 * WORKERS):
            pass  # processes have started
        for name, sentiment in (("without_sentiment", False), ("with_sentiment", True)):
            start = time.perf_counter()
            done = sum(pool.map(_measured, chunks, [sentiment] * len(chunks)))
            found[f"{name}_stories_per_s"] = done / (time.perf_counter() - start)
    return found


def main() -> None:
    """Measure, then print figures or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.stories", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="stories", help="set or file, as for python -m pretrain prepare")
    parser.add_argument("--vocab", help="SentencePiece model (default: 4,096 pieces trained on the data)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    texts = texts_of(options.data)
    words: Counter[str] = Counter()
    for text in texts:
        pieces.count_words(words, text)
    model = pieces.load(Path(options.vocab)) if options.vocab else pieces.train(words, 4096)
    found = {"stories": len(texts), **cutting(texts, model), **measuring(texts)}
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {value:12,.2f}")


if __name__ == "__main__":
    main()
