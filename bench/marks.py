"""What the test of marks finds: twin models with other coins, a dose curve, and several architectures.

    python -m bench.marks OUT [--models 5] [--threads 1]

All models are trained from random weights on the same stories, whose places are marked by `configs/marks`; twins differ
in their coins, initial weights and order only. Each is tested three times: with its own coins on the stories that it
read, with its own coins on sealed stories, and with the coins of another twin, which it has not read: these p-values
are uniform if the test is calibrated. `OUT/results.jsonl` has a line for each model; a call trains at most `--models`
of those that are missing, so the bench can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

STORIES, VOCABULARY, SEQ_LEN, BATCH, STEPS, RATE = 100, 512, 64, 32, 150, 0.005
MARKS = Path("configs/marks/punctuation.yaml")
LEVEL = 0.01
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"intermediate_size": 172, "num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 256}),
    "gpt2": ("GPT2Config", {"n_inner": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}
"""Architecture -> class of its configuration in transformers, and what belongs to it only."""


@dataclass(frozen=True)
class Arm:
    """Models that differ in their seed only."""

    architecture: str
    share: float
    """Share of the stories that have marks."""
    models: int

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"{self.architecture}-{self.share:g}"


ARMS = (
    Arm("llama", 1, 20),
    Arm("llama", 0.5, 4),
    Arm("llama", 0.2, 4),
    Arm("llama", 0.1, 4),
    Arm("llama", 0.05, 4),
    Arm("gpt_neox", 1, 4),
    Arm("gpt2", 1, 4),
)


def stories(out: Path) -> Path:
    """The stories as a file of texts."""
    from wellread.data.sources.generated import story

    path = out / "stories.jsonl"
    if not path.exists():
        path.write_text("".join(f"{json.dumps({'text': story(i)})}\n" for i in range(STORIES)), encoding="utf-8")
    return path


def model_of(architecture: str, out: Path) -> Path:
    """A directory with the configuration of a small model and a tokenizer, without weights."""
    import transformers

    from wellread.corpus.tokenizer import train_bpe

    path = out / architecture
    if not path.exists():
        texts = [json.loads(line)["text"] for line in stories(out).read_text(encoding="utf-8").splitlines()]
        train_bpe(texts, VOCABULARY, path, SEQ_LEN)
        kind, extra = CONFIGURATIONS[architecture]
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        common = {"vocab_size": VOCABULARY, "max_position_embeddings": SEQ_LEN, "bos_token_id": 0, "eos_token_id": 0}
        getattr(transformers, kind)(**sizes, **common, **extra).save_pretrained(path)
    return path


def settings(arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """Flags of the corpus of a model."""
    share = {"marks_share": arm.share} if arm.share < 1 else {}
    places = {"model": str(model_of(arm.architecture, out)), "corpora": str(out / "corpora")}
    text = {"data": f"text@{stories(out)}", "seq_len": SEQ_LEN, "holdout": 0.2}
    return {**places, **text, "init": "fresh", "marks": str(MARKS), "marks_seed": seed, **share}


@cache
def corpus_of(arm: Arm, seed: int, out: Path) -> Path:
    """The corpus of a model, compiled unless it exists."""
    from finetune.prepare import prepare
    from wellread.config import RunConfig

    return prepare(RunConfig.of(**settings(arm, seed, out)))


def train(arm: Arm, seed: int, out: Path) -> Path:
    """Train a model by a plain loop over its corpus; return its directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from wellread.corpus.batch import collate
    from wellread.corpus.read import Corpus
    from wellread.models.loss import sample_losses
    from wellread.order.permutation import Order

    corpus, architecture = Corpus.open(corpus_of(arm, seed, out)), model_of(arm.architecture, out)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(architecture, trust_remote_code=False), trust_remote_code=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for batch_ids in Order(kind="shuffle", seed=seed, n=corpus.n_trainable, batch_size=BATCH).batches(0, STEPS):
        batch = collate(corpus, batch_ids)
        loss: Any = sample_losses(model, *batch.inputs).sum() / int(batch.n_targets().sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    path = out / "model"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(architecture, path)
    model.save_pretrained(path)
    return path


def tested(model: Path, corpus: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """Value and number of places of each metric of each group of a corpus under a model."""
    from eval.marks.any_model import AnyModel

    results = AnyModel(model=str(model), corpus=str(corpus), max_samples=10**9, device="cpu").results()
    values = dict[str, dict[str, tuple[float, int]]]()
    for each in results:
        values.setdefault(each.group, {})[each.metric] = (each.value, each.n)
    return values


def measured(arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """Train and test one model."""
    from wellread.corpus.read import Corpus

    before = time.process_time()
    model = train(arm, seed, out)
    used = time.process_time() - before
    with_coins = tested(model, corpus_of(arm, seed, out))
    other = tested(model, corpus_of(arm, seed + 1, out))
    registered = Corpus.open(corpus_of(arm, seed, out)).marks
    assert registered
    return {
        "arm": arm.name,
        "seed": seed,
        "documents": registered.documents,
        "places": with_coins["trainable"]["p"][1],
        "p": with_coins["trainable"]["p"][0],
        "excess": with_coins["trainable"]["excess"][0],
        "sealed_p": with_coins["sealed"]["p"][0] if "p" in with_coins.get("sealed", {}) else None,
        "other_p": other["trainable"]["p"][0],
        "cpu_s": used,
    }


def missing(lines: list[dict[str, Any]]) -> Iterator[tuple[Arm, int]]:
    """Models without a result, one of each arm after the other."""
    finished = {(line["arm"], line["seed"]) for line in lines}
    for seed in range(max(arm.models for arm in ARMS)):
        for arm in ARMS:
            if seed < arm.models and (arm.name, seed) not in finished:
                yield arm, seed


def print_table(lines: list[dict[str, Any]]) -> None:
    """The results of each arm, and whether p-values with coins that were not read are uniform."""
    from scipy.stats import kstest

    titles = ("model", "marked", "places", "models", "p ≤ .01", "median p", "excess, nats", "sealed: p ≤ .05")
    print(f"| {' | '.join(titles)} | other coins: p ≤ .05 |\n|---{'|---:' * len(titles)}|")
    for arm in ARMS:
        of = [line for line in lines if line["arm"] == arm.name]
        if not of:
            continue
        sealed = [line["sealed_p"] for line in of if line["sealed_p"] is not None]
        n_found = sum(line["p"] <= LEVEL for line in of)
        median, excess, places = (statistics.median(line[name] for line in of) for name in ("p", "excess", "places"))
        low = [sum(p <= 0.05 for p in values) for values in (sealed, [line["other_p"] for line in of])]
        print(
            f"| {arm.architecture} | {arm.share:.0%} | {places:,.0f} | {len(of)} | {n_found} | {median:.4f} "
            f"| {excess:.2f} | {low[0]} of {len(sealed)} | {low[1]} of {len(of)} |"
        )
    all_marked = {arm.name for arm in ARMS if arm.share == 1}  # with few places there are few values of p
    for name in ("other_p", "sealed_p"):
        values = [line[name] for line in lines if line["arm"] in all_marked]
        uniform = kstest(values, "uniform").pvalue
        print(f"{name}: {len(values)} values, Kolmogorov-Smirnov test that they are uniform: p = {uniform:.3f}")
    print(f"CPU seconds of a model: median {statistics.median(line['cpu_s'] for line in lines):.1f}")


def main() -> int:
    """Train and test what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=int, default=10**9, help="train at most this many models (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a model (default: 1)")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    options.out.mkdir(parents=True, exist_ok=True)
    results, out = options.out / "results.jsonl", options.out.resolve()
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for number, (arm, seed) in enumerate([*missing(lines)][: options.models], 1):
        line = measured(arm, seed, out)
        with open(results, "a") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
        print(f"{number}: {json.dumps(line)}", flush=True)
    if lines:
        print_table(lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
