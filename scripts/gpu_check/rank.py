"""The separate processes of `make gpu-check`: one that lists the hardware, and one per rank of a case.

    python -m scripts.gpu_check.rank probe       print hardware and packages as one line of JSON
    python -m scripts.gpu_check.rank FOLDER      train a few steps of FOLDER/task.json; write FOLDER/rank-R.json

The real engines train a model with random weights on random tokens. Nothing is downloaded or saved.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.memory import private, shared
from scripts.gpu_check.weights import RandomSource
from wellread.config import RunConfig, from_dict
from wellread.files import write_json
from wellread.models.registry import find
from wellread.planning.plan import Plan
from wellread.train.rank import die_with_launcher, leave

if TYPE_CHECKING:
    from wellread.corpus.batch import Batch
    from wellread.train.engines.base import Engine

LR = 1e-4


def probe() -> None:
    """Print the GPUs, and the versions of torch and DeepSpeed."""
    import torch

    answer: dict[str, Any] = {"torch": torch.__version__, "gpus": [], "deepspeed": None, "why": None}
    if torch.cuda.is_available():
        every = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
        answer["gpus"] = [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in every]
    if answer["gpus"] or os.environ.get("DS_ACCELERATOR") == "cpu":
        try:
            import deepspeed

            answer["deepspeed"] = deepspeed.__version__
        except Exception as error:  # any error: DeepSpeed may be copied to this machine incompletely
            answer["why"] = _one_line(error)
    print(f"\n{json.dumps(answer)}", flush=True)


def rank(folder: Path) -> int:
    """Run this rank's part of a case; return 0 if it trained."""
    number = int(os.environ["RANK"])
    task = json.loads((folder / "task.json").read_text())
    result: dict[str, Any] = {}

    def enter(phase: str) -> None:
        result["phase"] = phase
        if not result.get("seconds"):  # later steps are timed, so nothing is written
            write_json(folder / f"rank-{number}.json", result)

    try:
        _train(Plan.from_json(json.dumps(task["plan"])), from_dict(RunConfig, task["config"]), task, result, enter)
    except Exception as error:
        from wellread.train.shortage import shown_by

        trace = traceback.format_exc()
        print(trace, file=sys.stderr)
        shortage = shown_by(error, trace)
        result |= {"error": shortage.evidence if shortage else _one_line(error), "short": shortage and shortage.place}
    if not result.get("error") or result["short"]:
        result["gpu"] = gpu_memory(task["used_before"])
    write_json(folder / f"rank-{number}.json", result)
    return 1 if result.get("error") else 0


def _train(
    plan: Plan, config: RunConfig, task: dict[str, Any], result: dict[str, Any], enter: Callable[[str], None]
) -> None:
    from wellread.train import ranks

    enter("start")
    ranks.start(plan.machine.device)
    _import_all(plan)
    result["idle"] = {"host": private(os.getpid()) + shared(os.getpid()), "gpu": gpu_memory(task["used_before"])}
    from wellread.train.engines.choose import make_engine

    enter("load")
    spec = find(config.model.name)
    engine = make_engine(RandomSource.of_spec(spec), config, plan)
    result["parameters"] = engine.parameters
    result["losses"], result["seconds"] = [], []
    for _ in range(plan.steps):
        began = time.perf_counter()
        loss = _step(engine, plan, spec.vocab, enter)
        result["seconds"].append(time.perf_counter() - began)
        result["losses"].append(loss)
    engine.close()
    enter("end")


def _import_all(plan: Plan) -> None:
    """Import what a rank imports, so that its memory can be measured without a model."""
    import accelerate  # noqa: F401
    import torch
    from transformers import GPTNeoXForCausalLM  # noqa: F401

    if plan.engine == "deepspeed":
        import deepspeed  # noqa: F401
    if torch.cuda.is_available():  # the first tensor on the device creates the CUDA context
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def _step(engine: Engine, plan: Plan, vocab: int, enter: Callable[[str], None]) -> float:
    """One optimizer step, always on the same batch; returns the mean loss of this rank's tokens, nats."""
    import torch

    torch.manual_seed(int(os.environ["RANK"]))
    total, per_sample = 0.0, plan.seq_len - 1
    for number in range(plan.accumulation):
        enter("batch")
        batch = _random_batch(plan, vocab).to(engine.device)
        enter("forward and backward")
        scale = plan.ranks / (plan.batch_size * per_sample)
        losses = engine.forward_backward(batch, scale, last=number == plan.accumulation - 1)
        total += float(losses.double().sum())
    enter("step")
    engine.step(LR)
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    loss = total / (plan.accumulation * plan.micro_batch_size * per_sample)
    if not loss < float("inf"):
        raise FloatingPointError(f"the loss is {loss}")
    return loss


def _random_batch(plan: Plan, vocab: int) -> Batch:
    """Random samples of maximum length; all tokens except the first are targets."""
    import torch

    from wellread.corpus.batch import Batch

    size = plan.micro_batch_size
    tokens = torch.randint(0, vocab, (size, plan.seq_len))
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    return Batch(torch.arange(size), torch.full((size,), plan.seq_len), tokens, targets)


def gpu_memory(used_before: list[int]) -> dict[str, int] | None:
    """GPU memory of this rank, bytes; None on a CPU.

    `held` is the peak that torch's allocator reserved; `outside` is other memory on the device: CUDA context, kernels,
    NCCL. The device counts all processes together, so memory used before the rank started is subtracted. `pinned` is
    the peak of pinned host memory, rounded by torch.
    """
    import torch

    from wellread.train import ranks

    if not torch.cuda.is_available():
        return None
    device = ranks.device()
    free, total = torch.cuda.mem_get_info(device)
    before = used_before[ranks.local_rank()] if ranks.local_rank() < len(used_before) else 0
    outside = max(0, total - free - torch.cuda.memory_reserved(device) - before)
    reserved = torch.cuda.max_memory_reserved(device)
    allocated = torch.cuda.max_memory_allocated(device)
    pinned = int(torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0))
    return {
        "allocated": allocated,
        "held": reserved,
        "outside": outside,
        "process": reserved + outside,
        "pinned": pinned,
    }


def _one_line(error: BaseException) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def main(argv: list[str]) -> None:
    """Print the hardware, or train one rank."""
    die_with_launcher()
    if argv == ["probe"]:
        probe()
        leave(0)
    leave(rank(Path(argv[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
