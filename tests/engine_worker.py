"""One rank of an engine under test, started by `test_engines.py`: reads task.json in FOLDER, writes rank-R.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from wellread.config import OptimConfig, RunConfig
from wellread.plan import Plan


def resident() -> tuple[int, int]:
    """Resident bytes of this process: now, and at most since the last `reset_peak`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def plan_of(task: dict[str, Any], ranks: int) -> Plan:
    micro, accumulation, strategy = task.get("micro", 1), task.get("accumulation", 1), task["strategy"]
    return Plan(
        model="test",
        cluster="local",
        device="cpu",
        nodes=1,
        ranks_per_node=ranks,
        ranks=ranks,
        batch_size=ranks * micro * accumulation,
        micro_batch_size=micro,
        accumulation=accumulation,
        dtype=task.get("dtype", "bf16"),
        engine="torch" if strategy == "ddp" else "deepspeed",
        strategy=strategy,
        strategy_reason="",
        seq_len=task.get("seq_len", 16),
        samples=1,
        trainable=1,
        sealed=0,
        counts_exact=True,
        steps=task.get("steps", 0),
        epochs=1,
        warmup_steps=0,
        save_steps=(0,),
        **task.get("plan", {}),
    )


def main(folder: Path) -> None:
    import gc

    import deepspeed  # noqa: F401 (its imports belong to the baseline)
    import torch
    from accelerate import init_empty_weights  # noqa: F401
    from transformers import GPTNeoXForCausalLM  # noqa: F401

    from wellread.data.batch import Batch
    from wellread.models import tensors
    from wellread.models.load import Source, initial
    from wellread.models.registry import find
    from wellread.train import ranks
    from wellread.train.engine import make_engine

    task = json.loads((folder / "task.json").read_text())
    tensors.SHARD_BYTES = task.get("shard_bytes", tensors.SHARD_BYTES)
    ranks.start()
    torch.set_num_threads(1)
    plan = plan_of(task, ranks.world_size())
    config = RunConfig(dtype=plan.dtype, optim=OptimConfig(lr=1e-3, **task.get("optim", {})), **task.get("config", {}))
    path = Path(task["model"])
    result: dict[str, Any] = {}

    def measured(name: str, call: Any) -> Any:
        gc.collect()
        ranks.barrier()
        reset_peak()
        before, _ = resident()
        value = call()
        after, peak = resident()
        result[name] = {"before": before, "after": after, "peak": peak}
        return value

    def make() -> Any:
        return make_engine(Source.of(path) if path.is_dir() else initial(find(task["model"]), 0, 0), config, plan)

    engine = measured("load", make)
    result["parameters"] = engine.parameters
    losses, norms = [], []

    def train() -> None:
        for step in range(task.get("first", 0), plan.steps):
            torch.manual_seed(step)
            tokens = torch.randint(0, task["vocab"], (plan.batch_size, plan.seq_len))
            tokens = tokens.view(plan.accumulation, plan.ranks, plan.micro_batch_size, -1)[:, ranks.rank()]
            targets = torch.ones_like(tokens, dtype=torch.bool)
            targets[..., 0] = False
            scale = plan.ranks / (plan.batch_size * (plan.seq_len - 1))
            total = 0.0
            for number in range(plan.accumulation):
                batch = Batch(
                    sample_ids=torch.arange(plan.micro_batch_size),
                    tokens=tokens[number],
                    targets=targets[number],
                    lengths=torch.full((plan.micro_batch_size,), plan.seq_len),
                )
                loss = engine.forward_backward(batch, scale, last=number == plan.accumulation - 1)
                total += float(loss.double().sum())
            norms.append(engine.step(1e-3))
            losses.append(float(ranks.gather(torch.tensor([total])).sum()) * scale / plan.ranks)

    if task.get("resume"):
        state = Path(task["resume"])
        assert engine.fits(state)
        measured("resume", lambda: engine.load(state, task["first"]))
    measured("train", train)
    if task.get("save"):
        Path(task["save"]).mkdir(exist_ok=True)
        measured("save", lambda: engine.save(Path(task["save"])))
    ranks.barrier()
    result |= {"losses": losses, "norms": norms}
    (folder / f"rank-{ranks.rank()}.json").write_text(json.dumps(result))
    ranks.stop()


if __name__ == "__main__":
    from finetune.train import leave

    main(Path(sys.argv[1]))
    leave(0)
