"""Engines on two ranks: memory while loading and saving, offload, activation checkpointing, NVMe; figures, not runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wellread.config import OptimConfig, RunConfig
from wellread.plan import Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 30_000
OFFLOAD_TOLERANCE = 2e-3
"""Nats per token between DeepSpeed's AdamW on the host and torch's."""
Results = list[dict[str, Any]]
Start = Callable[..., Results]


# --- what each rank runs


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


def one_rank(folder: Path) -> None:
    """What each rank runs: the task of `folder`; leaves what it measured in rank-R.json."""
    import faulthandler
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

    faulthandler.dump_traceback_later(int(os.environ.get("HANG", 400)), exit=True)  # a rank that hangs shows where
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
    engine.close()
    result |= {"losses": losses, "norms": norms}
    (folder / f"rank-{ranks.rank()}.json").write_text(json.dumps(result))
    ranks.stop()


# --- fixtures


def make_model(directory: Path, **sizes: int) -> Path:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    usual = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    config = GPTNeoXConfig(**({"vocab_size": 331, "max_position_embeddings": 128} | usual | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sizes no two ranks divide evenly: 331 tokens, and a width of 33 for one head."""
    return make_model(tmp_path_factory.mktemp("small"), hidden_size=34, num_attention_heads=1, intermediate_size=63)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 million parameters in 12 shards or so."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    return make_model(tmp_path_factory.mktemp("large"), vocab_size=VOCAB, **sizes)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 256, "max_position_embeddings": 512}
    return make_model(tmp_path_factory.mktemp("deep"), **sizes)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run `one_rank` on some ranks with a task; what each of them measured."""
    return partial(run_ranks, tmp_path)


def run_ranks(place: Path, task: dict[str, Any], ranks: int = 2) -> Results:
    folder = place / f"task-{len(list(place.glob('task-*')))}"
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps({"vocab": 331} | task, default=str))
    variables = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")),
    }
    elastic = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *elastic, __file__, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def per_parameter(result: dict[str, Any], phase: str, key: str = "peak") -> float:
    """Bytes per parameter above what the process had before the phase."""
    found: float = (result[phase][key] - result[phase]["before"]) / result["parameters"]
    return found


# --- loading


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "zero3-offload"])
def test_weights_are_those_of_the_files_to_the_bit(
    start: Start, small: Path, tmp_path: Path, strategy: str, dtype: str
) -> None:
    start({"model": small, "strategy": strategy, "dtype": dtype, "save": tmp_path / "saved"})
    assert same_weights(tmp_path / "saved/model", small)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_fresh_model_starts_the_same_whatever_the_strategy(start: Start, tmp_path: Path, strategy: str) -> None:
    from wellread.models.load import initial
    from wellread.models.registry import find

    start({"model": "tiny", "strategy": strategy, "save": tmp_path / "saved"})
    initial(find("tiny"), 0, 0).whole().save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    assert same_weights(tmp_path / "saved/model", tmp_path / "whole")


def test_files_that_are_no_safetensors_load_from_rank_0(start: Start, small: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(small, old, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(weights_in(small), old / "pytorch_model.bin")
    start({"model": old, "strategy": "zero3", "save": tmp_path / "saved"}, ranks=3)  # 3 ranks: partitions are padded
    assert same_weights(tmp_path / "saved/model", small)


@pytest.mark.parametrize(("strategy", "before"), [("zero1", 11.4), ("zero3", 11.7)])
def test_load_holds_no_whole_copy_beside_the_engines_state(
    start: Start, large: Path, strategy: str, before: float
) -> None:
    """Bytes per parameter. `before` is what this model took when every rank built it in fp32 and kept a copy.

    What is left beside the state is one tensor (the embedding: 1.1 in fp32, and as much while it is converted), and
    in stages 1 and 2 the flat buffer that DeepSpeed makes of the bf16 weights.
    """
    for result in start({"model": large, "strategy": strategy, "vocab": VOCAB}):
        assert result["parameters"] == 55_940_096
        peak, settled = per_parameter(result, "load"), per_parameter(result, "load", "after")
        assert peak < 0.93 * before
        assert peak - settled < 2.5 if strategy == "zero3" else 3


# --- saving


def test_save_holds_one_shard(start: Start, large: Path, tmp_path: Path) -> None:
    task = {"model": large, "strategy": "zero3", "vocab": VOCAB, "save": tmp_path / "saved", "shard_bytes": 16 << 20}
    first, second = start(task)
    assert same_weights(tmp_path / "saved/model", large)
    shards = list((tmp_path / "saved/model").glob("model-*-of-*.safetensors"))
    assert len(shards) >= 8
    # The state of zero3 is written from where it is; the whole model would take 4 bytes per parameter beyond.
    assert per_parameter(first, "save") < 3.4
    assert per_parameter(second, "save") < 3.4


# --- offload


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_learns_what_its_stage_does(start: Start, small: Path, stage: int) -> None:
    """100 steps of accumulation 4 with clipping that bites; bf16 weights, whose rounding the two kernels differ in."""
    task = {"model": small, "steps": 100, "accumulation": 4, "micro": 2, "optim": {"clip": 0.3}}
    plain, offloaded = (start(task | {"strategy": f"zero{stage}{kind}"})[0] for kind in ("", "-offload"))
    assert np.mean(np.array(plain["norms"]) > 0.3) > 0.5  # clipped
    assert plain["losses"][0] == offloaded["losses"][0]
    assert np.abs(np.subtract(plain["losses"], offloaded["losses"])).max() < OFFLOAD_TOLERANCE
    assert np.allclose(plain["norms"], offloaded["norms"], rtol=0.02)


@pytest.fixture(scope="module")
def four_steps(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """zero3 without offload."""
    task = {"model": small, "strategy": "zero3", "accumulation": 2, "steps": 4}
    return run_ranks(tmp_path_factory.mktemp("zero3"), task)[0]


@pytest.mark.parametrize("strategy", ["zero3-partial", "zero3-nvme"])
def test_rare_offloads_train_and_resume_to_the_bit(
    start: Start, small: Path, four_steps: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    disk = tmp_path / "nvme"
    disk.mkdir()
    task = {"model": small, "strategy": strategy, "config": {"nvme_path": disk / "run"}, "accumulation": 2}
    whole = start(task | {"steps": 4, "save": tmp_path / "whole"})[0]
    assert np.abs(np.subtract(whole["losses"], four_steps["losses"])).max() < OFFLOAD_TOLERANCE
    half = start(task | {"steps": 2, "save": tmp_path / "half"})[0]
    assert half["losses"] == whole["losses"][:2]
    later = {"first": 2, "steps": 4, "model": tmp_path / "half/model", "resume": tmp_path / "half/state"}
    rest = start(task | later | {"save": tmp_path / "rest"})[0]
    assert rest["losses"] == whole["losses"][2:]
    assert same_weights(tmp_path / "rest/model", tmp_path / "whole/model")
    assert list(disk.iterdir()) == []  # nothing is left there


# --- activation checkpointing


@pytest.mark.parametrize(("strategy", "dtype"), [("ddp", "bf16"), ("zero2", "bf16"), ("zero3", "fp32")])
def test_activation_checkpointing_changes_memory_alone(start: Start, deep: Path, strategy: str, dtype: str) -> None:
    """12 layers of width 64, 9,216 tokens: activations dominate. What is computed again is the same."""
    task = {"model": deep, "strategy": strategy, "dtype": dtype, "steps": 2, "micro": 18, "seq_len": 512}
    without, with_it = (start(task | {"plan": {"activation_checkpointing": on}})[0] for on in (False, True))
    assert without["losses"] == pytest.approx(with_it["losses"], rel=1e-6)
    assert without["norms"] == pytest.approx(with_it["norms"], rel=1e-3)
    peaks = [result["train"]["peak"] - result["train"]["before"] for result in (without, with_it)]
    assert peaks[1] < 0.7 * peaks[0]


if __name__ == "__main__":
    from finetune.train import leave

    one_rank(Path(sys.argv[1]))
    leave(0)
