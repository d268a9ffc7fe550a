"""The checks of `make gpu-check` in their order, the most informative first. A new path of training is one entry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from scripts.gpu_check.cases import Case, cases


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check; it gives one row, or several."""

    name: str
    """For --only, and the name of its row."""
    section: str
    """Its table."""
    job: str
    """What runs it: a job of `worker.JOBS`, of `real_runs.RUNS`, or `memory` (cases.py)."""
    task: dict[str, Any] = field(default_factory=dict)
    seconds: float = 60
    """Maximum time."""
    parallel: bool = False
    """Measures no time, so that it runs at the same time as its neighbors."""
    full: bool = False
    """Only with --full or --only."""
    compared_on_cpu: bool = False
    """Also run on a CPU, with the plain settings; the losses must be equal."""
    plain: dict[str, Any] = field(default_factory=dict)
    """Settings of the other side of the comparison, where they differ."""
    tolerance: float = 0.0
    """Largest relative difference of a sample's loss."""
    same_losses_as: str = ""
    """Name of the row that must have the same losses."""
    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""
    only_gpu: bool = False
    """It is skipped without a GPU."""
    case: Case | None = None
    """The case of memory."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the checks on one kind of device."""

    large: dict[str, Any]
    """Settings of the model of the variants, and its batch."""
    adapted: dict[str, Any]
    """Settings of the model that gets an adapter."""
    small: tuple[dict[str, Any], ...]
    """Settings of the pretrained models."""
    square: int
    """Rows of the matrices of the ceilings."""
    steps: int
    """Measured steps of a variant."""
    run: dict[str, Any]
    """Settings of the real runs."""
    stop_at: int
    equal_steps: int = 5


GPU = Scale(
    large={"model": "pythia-1.4b", "seq_len": 2048, "batch_size": 8, "micro_batch_size": 8},
    adapted={"model": "pythia-6.9b", "seq_len": 2048, "batch_size": 8},
    small=(
        {"model": "stories-15m", "seq_len": 256, "batch_size": 128, "vocab": "4096"},
        {"model": "stories-110m", "seq_len": 1024, "batch_size": 64, "vocab": "4096"},
    ),
    square=8192,
    steps=8,
    run={"model": "tiny", "data": "sample", "steps": 300},
    stop_at=40,
)
CPU = Scale(
    large={"model": "tiny", "seq_len": 64, "batch_size": 4, "micro_batch_size": 2},
    adapted={"model": "pythia-14m", "seq_len": 32, "batch_size": 2},
    small=({"model": "stories-260k", "seq_len": 64, "batch_size": 8, "vocab": "512"},),
    square=256,
    steps=2,
    run={"model": "tiny", "data": "sample", "steps": 12, "batch_size": 4, "seq_len": 64},
    stop_at=3,
    equal_steps=2,
)
PLAIN = {"fast": "off", "compile": "off"}
"""Settings without any path that is faster and not proven."""
FAST = {"fast": "on", "compile": "off"}
CHOSEN = {"fast": "on"}
TINY = {"model": "tiny", "seq_len": 128, "batch_size": 8, "micro_batch_size": 4, "strategy": "ddp"} | PLAIN
"""Settings of the comparison with a CPU."""
PIECES = (48, 17, 30, 23)
"""Lengths of packed samples of the comparison."""
FP32, BF16 = 2e-4, 2e-2
"""Tolerances of losses: measured in nats per token, relative."""
MEMORY = ("ddp", "zero1", "zero2", "zero3")
SECONDS_PER_CASE = 300
AS_IS = "1.4B as it is"

ALL = {"fast": "on", "compile": "on"}
VARIANTS: dict[str, dict[str, Any]] = {
    AS_IS: {"settings": PLAIN},
    "1.4B, --fast on": {"settings": ALL},
    "1.4B, compiled": {"settings": CHOSEN, "paths": ["compile"]},
    "1.4B, bf16 weights": {"settings": CHOSEN, "paths": ["bf16"]},
    "1.4B, attention of variable length": {"settings": CHOSEN, "paths": ["varlen"]},
    "1.4B, bf16 weights, compiled": {"settings": CHOSEN, "paths": ["bf16", "compile"]},
    "1.4B, bf16 weights, compiled, float8": {
        "settings": CHOSEN | {"float8": True},
        "paths": ["bf16", "compile"],
        "check": {"needs": ("torchao",), "only_gpu": True},
    },
    "1.4B, bf16 weights, loss in one pass": {"settings": CHOSEN, "paths": ["bf16", "loss"]},
    "1.4B, bf16 weights, host ahead": {"settings": CHOSEN, "paths": ["bf16", "ahead"]},
}
"""Name of a row -> settings of the run, by their names on the command line, next to those of `Scale.large`, the
fast paths to choose from (default: all), and as `check` fields of the check. If this version has no such setting, the
row says so."""
FIRST_VARIANTS = 5
"""So many of them come before the memory of the strategies."""

PACKED_VARIANTS: dict[str, dict[str, Any]] = {
    "1.4B packed, --fast on": {"settings": ALL},
    "1.4B packed as it is": {"settings": PLAIN},
    "1.4B packed, attention of variable length": {"settings": CHOSEN, "paths": ["varlen"]},
}
"""The same with eight samples packed into each sequence."""


def checks(device: str) -> list[Check]:
    """All checks, the most informative first; those of --full come last."""
    scale = GPU if device == "cuda" else CPU
    variants = _variants(scale)
    memory = [_memory(case, scale) for case in cases(device)]
    return [
        Check(name="ceilings", section="ceilings", job="ceilings", task={"size": scale.square}, seconds=45),
        variants[0],
        *_correct(scale),
        _trainer(scale),
        *variants[1:FIRST_VARIANTS],
        *(check for check in memory if not check.full),
        *variants[FIRST_VARIANTS:],
        *_adapters(scale),
        *_small(scale),
        *(check for check in memory if check.full),
    ]


def _memory(case: Case, scale: Scale) -> Check:
    """A case of memory; by default only the strategies on the GPU with the model of the variants."""
    usual = case.model == scale.large["model"] and case.strategy in MEMORY and case.checkpointing == "off"
    full = case.story or not usual
    seconds = SECONDS_PER_CASE if full else 90
    return Check(name=case.name, section="memory", job="memory", case=case, seconds=seconds, full=full)


def _variants(scale: Scale) -> list[Check]:
    task = {"warm": 2, "steps": scale.steps, "seconds": 15, "profile": True}
    common: dict[str, Any] = {"section": "1.4B", "job": "train", "seconds": 90}
    plain = {**scale.large, "strategy": "ddp"}
    pieces = [plain["seq_len"] // 8] * 8
    rows = []
    for packed, variants in ((False, VARIANTS), (True, PACKED_VARIANTS)):
        more = {"pieces": pieces} if packed else {}
        for name, variant in variants.items():
            settings = plain | ({"pack": True} if packed else {}) | variant["settings"]
            of_row = {**task, **variant, **more, "settings": settings}
            fields = common | of_row.pop("check", {})
            rows.append(Check(name=name, task=of_row, **fields))
    first, *later = rows
    equal = {"same_losses_as": AS_IS, "tolerance": BF16}
    return [first, *(row if row.task.get("pieces") else replace(row, **equal) for row in later)]  # type: ignore[arg-type]


def _correct(scale: Scale) -> list[Check]:
    """Checks of correctness, which run at the same time."""
    trial = {"warm": 1, "steps": scale.equal_steps, "settings": TINY}
    packed = trial | {"settings": TINY | {"pack": True}, "pieces": PIECES}
    common: dict[str, Any] = {"job": "train", "parallel": True, "seconds": 120}
    equal: dict[str, Any] = common | {"section": "equality", "compared_on_cpu": True}
    fast = equal | {"plain": PLAIN, "tolerance": BF16}
    run: dict[str, Any] = {"section": "real runs", "parallel": True, "seconds": 170}
    packing = scale.run | {"strategy": "zero2", "pack": "true", "steps": min(40, scale.run["steps"])}
    return [
        Check(
            name="run stopped by SIGTERM, resumed and verified",
            job="stopped and resumed",
            task={"settings": scale.run, "stop_at": scale.stop_at},
            **run,
        ),
        Check(
            name="zero2 packed run, verified", job="finished", task={"settings": packing}, needs=("deepspeed",), **run
        ),
        Check(name="losses equal to a CPU's, fp32", task=_with(trial, dtype="fp32"), tolerance=FP32, **equal),
        Check(name="losses equal to a CPU's, bf16", task=_with(trial, dtype="bf16"), tolerance=BF16, **equal),
        Check(name="losses equal to a CPU's, fp32 packed", task=_with(packed, dtype="fp32"), tolerance=FP32, **equal),
        Check(name="losses equal to a CPU's, bf16 packed", task=_with(packed, dtype="bf16"), tolerance=BF16, **equal),
        Check(name="losses equal to a CPU's, bf16 --fast on", task=_with(trial, dtype="bf16", **FAST), **fast),
        Check(name="losses equal to a CPU's, bf16 packed --fast on", task=_with(packed, dtype="bf16", **FAST), **fast),
        Check(name="host waits per step", section="waits", task=trial | {"waits": True}, **common),
        Check(
            name="host waits per step, --fast on",
            section="waits",
            task=_with(trial | {"waits": True}, **FAST),
            **common,
        ),
        Check(
            name="host waits per step, host ahead",
            section="waits",
            task=_with(trial | {"waits": True, "paths": ["ahead"]}, **FAST),
            **common,
        ),
        Check(name="host waits per step, packed", section="waits", task=packed | {"waits": True}, **common),
    ]


def _with(trial: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return trial | {"settings": trial["settings"] | settings}


def _trainer(scale: Scale) -> Check:
    settings = scale.large | PLAIN | {"strategy": "ddp"}
    task = {"warm": 2, "steps": scale.steps, "settings": settings}
    name, same = "1.4B, Hugging Face's Trainer", {"same_losses_as": AS_IS, "tolerance": BF16}
    return Check(name=name, section="1.4B", job="trainer", task=task, seconds=75, **same)  # type: ignore[arg-type]


def _adapters(scale: Scale) -> list[Check]:
    settings = scale.adapted | PLAIN | {"strategy": "ddp", "lora": {"rank": 16}}
    task = {"warm": 1, "steps": min(4, scale.steps), "seconds": 20, "settings": settings, "profile": True}
    common: dict[str, Any] = {"section": "adapters", "job": "train", "seconds": 90}
    in_4bit = _with(task, strategy="auto", load_in_4bit=True)
    return [
        Check(name="7B with LoRA", task=task, needs=("peft",), **common),
        Check(name="7B with LoRA, --fast on", task=_with(task, **FAST), needs=("peft",), **common),
        Check(name="7B with LoRA in 4 bits", task=in_4bit, needs=("peft", "bitsandbytes"), only_gpu=True, **common),
    ]


def _small(scale: Scale) -> list[Check]:
    task = {"warm": 3, "steps": 3 * scale.steps, "seconds": 10, "recipe": "pretrain", "profile": True}
    common: dict[str, Any] = {"section": "small models", "job": "train", "seconds": 60}
    rows = []
    for settings in scale.small:
        name, plain = settings["model"], {**settings, "strategy": "ddp"}
        rows += [
            Check(name=name, task=task | {"settings": plain | PLAIN}, **common),
            Check(
                name=f"{name}, --fast on",
                task=task | {"settings": plain | {"fast": "on", "compile": "on"}},
                same_losses_as=name,
                tolerance=BF16,
                **common,
            ),
        ]
    return rows
