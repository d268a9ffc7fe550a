"""Speed of the order, compared with numpy.random.Generator.permutation, which stores what the order computes.

    python -m bench.order [--json]

Forward and inverse are measured on 8 million consecutive positions or random samples; numpy permutes all n at once.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from wellread.order.permutation import Order
from wellread.units import GIB

SIZES = (12_000, 1_000_003, 146_000_000)
POSITIONS = 8_000_000
BATCH_SIZE = 1024
EPOCHS = 3


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def throughput(n: int) -> dict[str, float]:
    """Positions per second, forward and inverse; time, memory and rate of numpy; the ratio of the rates."""
    order = Order(kind="shuffle", seed=0, n=n, batch_size=BATCH_SIZE)
    positions = np.arange(POSITIONS, dtype=np.int64)
    samples = np.random.default_rng(0).integers(n, size=POSITIONS)
    forward = POSITIONS / min(seconds(lambda: order.samples(positions)) for _ in range(3))
    inverse = POSITIONS / min(seconds(lambda: order.positions(samples, 1)) for _ in range(3))
    repeats = 1 if n > POSITIONS else 3
    peer = min(seconds(lambda: np.random.default_rng(0).permutation(n)) for _ in range(repeats))
    return {
        "n": n,
        "forward_per_s": forward,
        "inverse_per_s": inverse,
        "numpy_s": peer,
        "numpy_gib": n * 8 / GIB,
        "numpy_per_s": n / peer,
        "forward_over_numpy": forward * peer / n,
    }


def latency(n: int) -> dict[str, float]:
    """Median time of `batch` and of `locate` over EPOCHS epochs, 1000 calls each, microseconds."""
    order = Order(kind="shuffle", seed=0, n=n, batch_size=BATCH_SIZE)
    batches = order.steps(EPOCHS)
    rng = np.random.default_rng(0)
    batch_ids, samples = rng.integers(batches, size=1000).tolist(), rng.integers(n, size=1000).tolist()
    batch = [seconds(lambda k=k: order.batch(k)) for k in batch_ids]  # type: ignore[misc]
    locate = [seconds(lambda s=s: order.locate(s, batches=batches)) for s in samples]  # type: ignore[misc]
    return {"batch_us": statistics.median(batch) * 1e6, "locate_us": statistics.median(locate) * 1e6}


def print_table(rows: list[dict[str, float]], times: dict[str, float]) -> None:
    """Print one line per corpus size, then the latencies."""
    heads = ("forward M/s", "inverse M/s", "numpy M/s", "numpy s", "numpy GiB", "forward/numpy")
    print(f"{'n':>12}", *(f"{head:>13}" for head in heads))
    for row in rows:
        rates = (f"{row[key] / 1e6:13.1f}" for key in ("forward_per_s", "inverse_per_s", "numpy_per_s"))
        print(f"{row['n']:12,}", *rates, f"{row['numpy_s']:13.5f} {row['numpy_gib']:13.5f}", end=" ")
        print(f"{row['forward_over_numpy']:13.2f}")
    print(f"n = {SIZES[-1]:,}, median of 1000: batch of {BATCH_SIZE} {times['batch_us']:.0f} us,", end=" ")
    print(f"locate over {EPOCHS} epochs {times['locate_us']:.0f} us")


def main() -> None:
    """Measure, then print the table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.order", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    as_json = parser.parse_args().json
    rows = [throughput(n) for n in SIZES]
    times = latency(SIZES[-1])
    if as_json:
        print(json.dumps({"throughput": rows, "latency": times}))
    else:
        print_table(rows, times)


if __name__ == "__main__":
    main()
