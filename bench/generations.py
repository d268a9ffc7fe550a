"""Speed of continuations with a cache, compared with `greedy` without one, and of saturation.

    python -m bench.generations [--new_tokens 200] [--repeats 3] [--json]

Texts of 8 prompts with 48 to 96 tokens by the model `tiny` with random weights, on a CPU. Both sides in turn, after a
warm-up of 2 tokens; seconds of processor time of all threads, medians. The texts must be equal. Saturation: 10 metrics
of 256 texts at 20 checkpoints, verdicts and fits. Exit code 1 if `greedy` takes less than 5 times as long as
continuations with a cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PROMPTS, NEW_TOKENS, REPEATS, WARM_UP = 8, 200, 3, 2
GOAL = 5.0
"""Least ratio of the two times."""
METRICS, ITEMS, CHECKPOINTS = 10, 256, 20


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call, of all threads: other programs on the machine change it less than wall time."""
    start = time.process_time()
    call()
    return time.process_time() - start


def generation(new_tokens: int = NEW_TOKENS, repeats: int = REPEATS) -> dict[str, float]:
    """Seconds of `greedy` and of `continuations`, medians, and the ratio of these; asserts that the texts are equal."""
    import torch
    from transformers import AutoModelForCausalLM

    from wellread.models.continuations import continuations
    from wellread.models.generate import greedy
    from wellread.models.gpt_neox import configuration
    from wellread.models.loss import next_logits
    from wellread.models.registry import find

    torch.manual_seed(0)
    spec = find("tiny")
    model: Any = AutoModelForCausalLM.from_config(configuration(spec, bos=0, eos=0), trust_remote_code=False).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, spec.vocab, length).tolist() for length in np.linspace(48, 96, PROMPTS).astype(int)]
    texts: dict[str, list[list[int]]] = {}

    def without_cache(new_tokens: int) -> None:
        with torch.inference_mode():
            logits = partial(next_logits, model)
            texts["greedy"] = greedy(logits, prompts, new_tokens=new_tokens, longest=spec.positions, end=None)

    def cached(new_tokens: int) -> None:
        texts["cached"] = continuations(model, prompts, new_tokens=new_tokens, end=None)

    times: dict[str, list[float]] = {"greedy": [], "cached": []}
    for turn in range(1 + repeats):
        for name, side in (("greedy", without_cache), ("cached", cached)):
            time_of_side = seconds(partial(side, new_tokens if turn else WARM_UP))
            times[name] += [time_of_side] * (turn > 0)
        assert texts["greedy"] == texts["cached"], "the texts differ, so their times say nothing"
    slow, fast = (statistics.median(times[name]) for name in ("greedy", "cached"))
    return {"greedy_s": slow, "cached_s": fast, "greedy_over_cached": slow / fast}


def saturation() -> dict[str, float]:
    """Seconds of verdicts and fits of all metrics of a run."""
    from eval.saturation.curve import Curve
    from eval.saturation.fits import FORMS, fit
    from eval.saturation.verdict import judge

    steps, rng = np.arange(50, 50 * CHECKPOINTS + 1, 50), np.random.default_rng(0)
    shape = 3 * np.exp(-steps / 100)
    curves = [
        Curve(
            metric=str(number),
            steps=steps,
            values=rng.normal(0, 1, (ITEMS, 1)) + shape + rng.normal(0, 0.2, (ITEMS, CHECKPOINTS)),
            documents=np.arange(ITEMS),
        )
        for number in range(METRICS)
    ]
    verdicts = seconds(lambda: [judge(curve, margin=0.05) for curve in curves])
    return {"verdicts_s": verdicts, "fits_s": seconds(lambda: [fit(curve, FORMS["power"]) for curve in curves])}


def main() -> int:
    """Print both measurements; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--new_tokens", type=int, default=NEW_TOKENS, help="Tokens of each text.")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="Measurements of each side.")
    flags = parser.parse_args()
    results = generation(flags.new_tokens, flags.repeats) | saturation()
    lines = [f"{name:20} {value:10.2f}" for name, value in results.items()]
    print(json.dumps(results) if flags.json else "\n".join(lines))
    if (ratio := results["greedy_over_cached"]) >= GOAL:
        return 0
    print(f"bench.generations: {ratio:.2f} times as fast as greedy, the goal is {GOAL:g}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
