"""Speed of continuations with a cache, compared with `greedy` without one, and of saturation.

    python -m bench.generations [--json]

Texts of 8 prompts with 48 to 96 tokens, 200 new tokens, by a fresh GPT-NeoX of six layers and width 128; each side
once, after a warm-up of 2 tokens. Saturation: 10 metrics of 256 texts at 20 checkpoints, verdicts and fits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PROMPTS, NEW_TOKENS = 8, 200
METRICS, ITEMS, CHECKPOINTS = 10, 256, 20


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def generation() -> dict[str, float]:
    """Seconds of `greedy` and of `continuations`, and their ratio; the texts must be equal."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from wellread.models.continuations import continuations
    from wellread.models.generate import greedy
    from wellread.models.loss import next_logits

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=2048, hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512
    )
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 2048, length).tolist() for length in np.linspace(48, 96, PROMPTS).astype(int)]
    texts: dict[str, list[list[int]]] = {}

    def without_cache(new_tokens: int) -> None:
        with torch.inference_mode():
            texts["greedy"] = greedy(
                partial(next_logits, model), prompts, new_tokens=new_tokens, longest=2048, end=None
            )

    def cached(new_tokens: int) -> None:
        texts["cached"] = continuations(model, prompts, new_tokens=new_tokens, end=2047)

    for warm_up in (without_cache, cached):
        warm_up(2)
    slow, fast = seconds(lambda: without_cache(NEW_TOKENS)), seconds(lambda: cached(NEW_TOKENS))
    equal = sum(a[: len(b)] == b for a, b in zip(texts["greedy"], texts["cached"], strict=True))
    return {"greedy_s": slow, "cached_s": fast, "greedy_over_cached": slow / fast, "equal_texts": equal}


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


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    as_json = parser.parse_args().json
    results = generation() | saturation()
    print(json.dumps(results) if as_json else "\n".join(f"{name:20} {value:10.2f}" for name, value in results.items()))


if __name__ == "__main__":
    main()
