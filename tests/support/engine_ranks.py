"""Engines on some ranks, without a run: tests give each rank tasks, and the ranks return measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from launch import ops
from launch.cluster import ClusterFile
from wellread.config import LoraConfig, OptimConfig, RunConfig
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
OPS = str(ops.folder(ClusterFile(kind="local")))
Results = list[dict[str, Any]]


def ensure_op(name: str) -> None:
    """Compile one of DeepSpeed's ops, unless it is compiled already."""
    ops.ensure(name, {"TORCH_EXTENSIONS_DIR": OPS})


def run_ranks(folder: Path, tasks: list[dict[str, Any]], ranks: int = 2) -> list[Results]:
    """Run `one_rank` on some ranks; return the measurements of each task, by rank."""
    if any(task.get("strategy") == "zero3-nvme" for task in tasks):
        ensure_op("async_io")  # in a new environment it takes minutes to compile, but the ranks have a time limit
    folder.mkdir()
    (folder / "tasks.json").write_text(json.dumps([{"vocab": 331} | task for task in tasks], default=str))
    variables = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": OPS,
    }
    elastic = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *elastic, __file__, str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    measured = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    return [list(of_task) for of_task in zip(*measured, strict=True)]


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """This process as the process group of one rank."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_model(directory: Path, **sizes: int) -> Path:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    usual = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    config = GPTNeoXConfig(**({"vocab_size": 331, "max_position_embeddings": 128} | usual | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


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
        machine=Machine(device="cpu", ranks_per_node=ranks),
        counts=Counts(samples=1, trainable=1, sealed=0, exact=True),
        batch_size=ranks * micro * accumulation,
        micro_batch_size=micro,
        accumulation=accumulation,
        dtype=task.get("dtype", "bf16"),
        engine=STRATEGIES[strategy].engine,
        strategy=strategy,
        strategy_reason="",
        seq_len=task.get("seq_len", 16),
        steps=task.get("steps", 0),
        epochs=1,
        warmup_steps=0,
        save_steps=(0,),
        **task.get("plan", {}),
    )


def one_rank(folder: Path) -> None:
    """The program of a rank: run the tasks of `folder` in order, and write the measurements to rank-R.json."""
    import faulthandler

    import deepspeed  # noqa: F401 (imported before memory is measured)
    import torch
    from accelerate import init_empty_weights  # noqa: F401
    from transformers import GPTNeoXForCausalLM  # noqa: F401

    from wellread.train import ranks

    faulthandler.dump_traceback_later(int(os.environ.get("HANG", 540)), exit=True)  # a rank that hangs shows where
    ranks.start("cpu")
    torch.set_num_threads(1)
    results = [one_task(folder, task) for task in json.loads((folder / "tasks.json").read_text())]
    (folder / f"rank-{ranks.rank()}.json").write_text(json.dumps(results))
    ranks.stop()


def one_task(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Create an engine, resume, train and save, as the task says; return the measurements of this rank."""
    import gc

    from wellread.models import tensors
    from wellread.models.adapter import is_adapter
    from wellread.models.load import Source, initial
    from wellread.models.registry import find
    from wellread.train import ranks
    from wellread.train.engines import moments
    from wellread.train.engines.choose import make_engine

    tensors.SHARD_BYTES = task.get("shard_bytes", tensors.SHARD_BYTES)
    plan = plan_of(task, ranks.world_size())
    nested = {"optim": OptimConfig(lr=1e-3, **task.get("optim", {})), "lora": LoraConfig(**task.get("lora", {}))}
    config = RunConfig.of(dtype=plan.dtype, **nested, **task.get("config", {}))
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
        has_weights = path.is_dir() and not (config.lora.rank and not is_adapter(path))
        source = Source.of(path) if has_weights else initial(find(task["model"]), 0, 0, config.lora)
        return make_engine(source, config, plan)

    def save(place: str) -> None:
        ranks.barrier()
        Path(place).mkdir(parents=True, exist_ok=True)
        engine.save(Path(place))

    engine = measured("load", make)
    result["parameters"] = engine.parameters
    losses: list[float] = []
    norms: list[float] = []
    moved: list[float] = []

    def train() -> None:
        for step in range(task.get("first", 0), plan.steps):
            if step in task.get("save_at", []):
                save(f"{task['save']}-{step}")
            fault = next((name for name in ("drop", "infinite") if step in task.get(name, ())), None)
            loss, norm, distance = one_step(engine, plan, step, task["vocab"], fault)
            losses.append(loss)
            norms.extend([] if norm is None else [norm])
            moved.extend([] if fault is None else [distance])

    if task.get("resume"):
        state, updates = Path(task["resume"]), task.get("updates", task["first"])
        converted = folder / f"converted-{state.parent.name}"
        assert engine.fits(state) is not task.get("converted", False)
        if engine.fits(state):
            measured("resume", lambda: engine.load(state, updates))
        else:
            if ranks.rank() == 0 and (state / moments.ZERO).is_dir() and not converted.is_dir():
                moments.convert(state, converted)
            ranks.barrier()
            engine.adopt(path, moments.read(state, converted), updates)
    measured("train", train)
    if task.get("generate"):
        result |= generated(engine._module.model, task["vocab"])
        engine._module.train()
    if task.get("save"):
        measured("save", lambda: save(task["save"]))
    ranks.barrier()
    engine.close()
    return result | {"losses": losses, "norms": norms, "moved": moved}


def generated(model: Any, vocab: int) -> dict[str, Any]:
    """A greedy continuation of a prompt, and the logits after the prompt."""
    tokens = torch.arange(1, 9)[None] * 7 % vocab
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0, -1]
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    return {"generated": output[0].tolist(), "logits": logits.tolist()}


def one_step(engine: Any, plan: Plan, step: int, vocab: int, fault: str | None) -> tuple[float, float | None, float]:
    """Train one step on random tokens that depend only on the step, or drop it, or make its gradient infinite.

    Returns the mean loss, the norm of the gradient (None if it was dropped), and the largest change of a loss of the
    last micro-batch.
    """
    from wellread.corpus.batch import Batch
    from wellread.train import ranks

    torch.manual_seed(step)
    tokens = torch.randint(0, vocab, (plan.batch_size, plan.seq_len))
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
        factor = float("inf") if fault == "infinite" else 1.0
        loss = engine.forward_backward(batch, scale * factor, last=number == plan.accumulation - 1)
        total += float(loss.double().sum())
    norm = engine.drop() if fault == "drop" else engine.step(1e-3)
    distance = float((engine.evaluate(batch) - loss).abs().max()) if fault else 0.0
    return float(ranks.gather(torch.tensor([total])).sum()) * scale / plan.ranks, norm, distance


if __name__ == "__main__":
    from wellread.train.rank import leave

    one_rank(Path(sys.argv[1]))
    leave(0)
