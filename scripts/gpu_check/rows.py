"""Rows of the table: prediction and result of each case."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scripts.gpu_check.cases import peak
from scripts.gpu_check.machine import Inventory
from wellread.planning.estimate import CUDA_CONTEXT, INTERPRETER, NCCL
from wellread.units import GIB

WIDEST = 120
"""Maximum number of characters of an outcome in the table; the file of --json has the complete text."""
NOT_RUN = ("saving", "resuming")
"""Phases of a run that the check does not execute."""


@dataclass
class Row:
    """Prediction and result of one case."""

    model: str
    strategy: str
    outcome: str
    trained: bool = False
    short: str | None = None
    """Which memory ran out: gpu or host."""
    story: bool = False
    checkpointing: bool = False
    ratio: float | None = None
    ranks: int = 1
    micro_batch: int = 0
    seq_len: int = 0
    fits: bool = False
    predicted: dict[str, int] = field(default_factory=dict)
    """Predicted bytes, by gpu (per GPU) and host."""
    peaks: dict[str, str] = field(default_factory=dict)
    """Phase with the predicted peak, by gpu and host."""
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    gpu: dict[str, int] | None = None
    """Bytes on the fullest GPU: allocated, held, outside, process; and pinned, the pinned host memory of its rank."""
    host: dict[str, int] = field(default_factory=dict)
    """Bytes of host memory: pss, and taken (decrease of the machine's available memory)."""
    idle: dict[str, Any] = field(default_factory=dict)
    """Memory of rank 0 before the model is loaded: host, gpu."""
    parameters: int | None = None
    losses: list[float] = field(default_factory=list)
    """Loss of rank 0 at each step, nats per token."""
    seconds: list[float] = field(default_factory=list)
    """Time of each step."""
    tokens_per_second: float | None = None
    mfu: float | None = None
    name: str = ""
    trace: str | None = None
    """End of the log of the rank that failed."""
    took: float | None = None
    """Seconds for this row, with loading."""

    def as_dict(self) -> dict[str, Any]:
        """The row as a dictionary, with the keys that rows of all kinds have."""
        gpu = self.gpu["process"] if self.gpu else None
        predicted = self.predicted.get("gpu") or None
        return asdict(self) | {
            "section": "memory",
            "why": None if self.trained else self.outcome,
            "gib_predicted": predicted and predicted / GIB,
            "gib_measured": gpu and gpu / GIB,
        }

    @property
    def failed(self) -> bool:
        """Whether it was predicted to fit, and started, but did not train."""
        return self.fits and not self.trained and not self.skipped

    @property
    def skipped(self) -> bool:
        """Whether the case could not be started."""
        return self.outcome.startswith("not run")

    @property
    def host_measured(self) -> int | None:
        """Measured host memory, bytes; None if it was not measured."""
        return (max(self.host.values()) if self.gpu else self.host["pss"]) if self.host.get("pss") else None

    def error(self, place: str) -> float | None:
        """Predicted / measured - 1; None if they cannot be compared."""
        measured = (
            self.gpu["process"] if place == "gpu" and self.gpu else self.host_measured if place == "host" else None
        )
        if not self.trained or not measured or self.peaks.get(place) in NOT_RUN:
            return None
        return self.predicted[place] / measured - 1


# --- the table -------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """All rows as Markdown, with aligned columns for a terminal."""
    heads = ["model", "strategy", "batch", "GPU predicted", "measured", "error", "tensors"]
    heads += ["host predicted", "measured", "error", "tokens/s", "MFU", "outcome"]
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    texts = (0, 1, len(heads) - 1)  # columns that are aligned to the left
    rule = ["-" * width if column in texts else "-" * (width - 1) + ":" for column, width in enumerate(widths)]

    def line(of: list[str]) -> str:
        pairs = enumerate(zip(of, widths, strict=True))
        return f"| {' | '.join(t.ljust(w) if column in texts else t.rjust(w) for column, (t, w) in pairs)} |"

    return "\n".join([line(heads), line(rule), *map(line, cells[1:])])


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        _strategy(row),
        f"{row.micro_batch} x {row.seq_len}" if row.seq_len and row.micro_batch < 2**20 else "",
        _gib(row.predicted.get("gpu")),
        _gib(row.gpu["process"] if row.gpu else None),
        _percent(row.error("gpu"), "+"),
        _gib(row.gpu["allocated"] if row.gpu else None),
        _gib(row.predicted.get("host")),
        _gib(row.host_measured),
        _percent(row.error("host"), "+"),
        f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "",
        _percent(row.mfu),
        row.outcome.replace("|", "/")[:WIDEST],
    ]


def _gib(size: int | None) -> str:
    return f"{size / GIB:,.2f}" if size and size < 2**60 else ""


def _percent(part: float | None, sign: str = "") -> str:
    return "" if part is None else f"{part:{sign}.1%}"


def remarks(rows: list[Row], inventory: Inventory, left_out: list[str], waiting: list[str]) -> list[str]:
    """Lines of text above the table."""
    lines = ["Sizes in GiB, per GPU, and of all ranks together on the host; tensors: peak of torch's allocated memory."]
    host = [row.idle["host"] for row in rows if row.idle]
    context = [row.idle["gpu"]["outside"] for row in rows if row.idle.get("gpu")]
    outside = [row.gpu["outside"] for row in rows if row.gpu and row.trained]
    if host:
        assumed = INTERPRETER[inventory.machine.device] / GIB
        lines.append(f"Host memory of a rank without a model: {_range(host)} GiB (predicted with {assumed:.2f}).")
    if context and outside:
        assumed = (CUDA_CONTEXT + NCCL * (inventory.machine.ranks > 1)) / GIB
        lines.append(
            f"GPU memory outside torch's allocator: {_range(context)} GiB before the model, {_range(outside)} "
            f"after training (predicted with {assumed:.2f})."
        )
    if inventory.gpus and peak(inventory.gpus[0]) is None:
        lines.append(f"No MFU: scripts/gpu_check/cases.py has no peak rate for {inventory.gpus[0]}.")
    lines += [f"The story: {_story(row)}." for row in rows if row.story]
    if left_out:
        lines.append(f"Skipped, because they are predicted not to fit: {', '.join(left_out)}.")
    if waiting:
        lines.append(f"Skipped, because the time ran out (--minutes): {', '.join(waiting)}.")
    return lines


def _story(row: Row) -> str:
    if not row.predicted:
        return f"{row.model}, {row.strategy}: {row.outcome}"
    prediction = "predicted to fit" if row.fits else "predicted not to fit"
    needs = f" ({_gib(row.predicted['gpu'])} GiB per GPU)" if row.predicted["gpu"] else ""
    return f"{row.model}, {_strategy(row)}, {prediction}{needs}: {row.outcome}"


def _strategy(row: Row) -> str:
    ratio = f" {row.ratio:.0%}" if row.ratio is not None else ""
    return row.strategy + ratio + ", checkpointing" * row.checkpointing


def _range(sizes: list[int]) -> str:
    return " to ".join(f"{size / GIB:.2f}" for size in sorted({min(sizes), max(sizes)}))


def line_of(row: Row) -> str:
    """A row as one line, printed while the check runs."""
    pairs = [f"{key} {_gib(row.predicted.get(key))} predicted" for key in ("gpu", "host") if row.predicted.get(key)]
    measured = {"gpu": row.gpu["process"] if row.gpu else None, "host": row.host_measured}
    pairs = [f"{pair}, {_gib(measured[pair.split()[0]]) or '?'} measured" for pair in pairs]
    return "  ".join([*pairs, row.outcome[:WIDEST]])
