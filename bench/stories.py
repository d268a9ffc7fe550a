"""Speed of preparing stories: tokenization compared with SentencePiece's call per story, and text metrics.

    python -m bench.stories [--data FILE] [--vocab FILE.model] [--json]

Both sides tokenize the same texts in the same run on one core, and their pieces must be equal. "first" starts with an
empty cache of words; "then" tokenizes the texts again, as for later shards of a large data set. Metrics are measured in
two processes.
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
"""Number of stories for measuring metrics; the data is repeated to get that many."""


def texts_of(data: str) -> list[str]:
    """All usable stories of a data set."""
    return [document.text for _, document in documents.read(sets.documents(data)) if not isinstance(document, str)]


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def tokenizing(texts: Sequence[str], model: bytes) -> dict[str, float]:
    """Megabytes per second on one core, for both sides, and the ratios; the best of several alternating rounds."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = sum(len(text.encode()) for text in texts) / 1e6
    peer, first, then = [], [], []
    for _ in range(ROUNDS):
        tokenizer = Pieces(model)
        assert tokenizer.by_word  # reads the model, which must not be timed
        peer.append(seconds(lambda: [processor.encode(text) for text in texts]))
        first.append(seconds(lambda encode=tokenizer.encode: [encode(text) for text in texts]))  # type: ignore[misc]
        then.append(seconds(lambda encode=tokenizer.encode: [encode(text) for text in texts]))  # type: ignore[misc]
    assert all(tokenizer.encode(text).tolist() == processor.encode(text) for text in texts)
    return {
        "mb": size,
        "sentencepiece_mb_per_s": size / min(peer),
        "first_mb_per_s": size / min(first),
        "then_mb_per_s": size / min(then),
        "first_over_sentencepiece": min(peer) / min(first),
        "then_over_sentencepiece": min(peer) / min(then),
    }


def _measured(texts: list[str], sentiment: bool) -> int:
    return len(measure(texts, sentiment=sentiment))


def measuring(texts: Sequence[str]) -> dict[str, float]:
    """Stories per second on two cores, without and with sentiment."""
    many = (list(texts) * -(-ENOUGH // len(texts)))[:ENOUGH]
    chunks = [many[i : i + CHUNK] for i in range(0, len(many), CHUNK)]
    rates = {}
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for _ in pool.map(_measured, chunks[: 2 * WORKERS], [True] * 2 * WORKERS):
            pass  # wait until the processes have started
        for name, sentiment in (("without_sentiment", False), ("with_sentiment", True)):
            start = time.perf_counter()
            stories = sum(pool.map(_measured, chunks, [sentiment] * len(chunks)))
            rates[f"{name}_stories_per_s"] = stories / (time.perf_counter() - start)
    return rates


def main() -> None:
    """Measure, then print the results as text or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.stories", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="stories", help="data set or file, as for wellread prepare pretrain")
    parser.add_argument("--vocab", help="SentencePiece model (default: 4,096 pieces trained on the data)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args()
    texts = texts_of(options.data)
    words: Counter[str] = Counter()
    for text in texts:
        pieces.count_words(words, text)
    model = pieces.load(Path(options.vocab)) if options.vocab else pieces.train(words, 4096)
    results = {"stories": len(texts), **tokenizing(texts, model), **measuring(texts)}
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:28} {value:12,.2f}")


if __name__ == "__main__":
    main()
