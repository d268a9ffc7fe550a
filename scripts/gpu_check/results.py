"""One row of the check: what was measured, or why it was not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

LONGEST = 160
"""Maximum number of characters of a reason in a table; the file of --json has the complete text."""
HIDDEN = ("losses", "sample_losses", "norms", "digests", "stacks", "top", "trace")
"""Facts that are only in the file of --json."""


@dataclass
class Result:
    """One row. Its `facts` become keys of the row in the file of --json."""

    name: str
    section: str
    trained: bool | None = None
    """Whether it did what it should: trained, or was measured. None: it was not started."""
    why: str | None = None
    """Why not."""
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Model FLOPs utilization, a share of the device's peak."""
    gib_predicted: float | None = None
    """GiB per GPU that the plan predicts."""
    gib_measured: float | None = None
    """Peak GiB of a GPU."""
    took: float | None = None
    """Seconds for this row, with loading."""
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, section: str, values: dict[str, Any]) -> Result:
        """A row from the keys that a process has measured; those without a field are facts."""
        fields = {key: values[key] for key in FIELDS if key in values}
        facts = {key: value for key, value in values.items() if key not in (*FIELDS, "name", "section")}
        return cls(values.get("name", name), section, **fields, facts=facts)

    @property
    def failed(self) -> bool:
        """Whether it was started and did not work."""
        return self.trained is False

    def as_dict(self) -> dict[str, Any]:
        """The row as one flat dictionary."""
        values = asdict(self)
        row: dict[str, Any] = finite({**values.pop("facts"), **values})
        return row

    @property
    def line(self) -> str:
        """The row as one line without its name, printed while the check runs."""
        return "  ".join(filter(None, [*self.numbers(), self.remarks]))

    def numbers(self) -> list[str]:
        """The measured numbers as texts with their units."""
        texts = []
        if self.tokens_per_second:
            texts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.mfu is not None:
            texts.append(f"MFU {self.mfu:.1%}")
        if self.gib_measured is not None:
            predicted = "" if self.gib_predicted is None else f" ({self.gib_predicted:.1f} predicted)"
            texts.append(f"{self.gib_measured:.1f} GiB{predicted}")
        return texts

    @property
    def remarks(self) -> str:
        """Facts and the reason as one text."""
        facts = [f"{key.replace('_', ' ')} {text(value)}" for key, value in self.facts.items() if key not in HIDDEN]
        state = {False: "FAILED: ", None: "not run: "}.get(self.trained, "") if self.why else ""
        return ", ".join(filter(None, [f"{state}{self.why}"[:LONGEST] if self.why else "", *facts]))


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


FIELDS = ("trained", "why", "tokens_per_second", "mfu", "gib_predicted", "gib_measured", "took")


def text(value: Any) -> str:
    """A fact for people."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return " ".join(map(text, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(rows: list[Result]) -> str:
    """Rows of one section as Markdown; columns that no row fills are left out."""
    heads = ("what", "tokens/s", "MFU", "GiB predicted", "GiB measured", "remarks")
    lines = [_cells(row) for row in rows]
    columns = [0, *(number for number in range(1, len(heads)) if any(line[number] for line in lines))]
    cells = [[line[number] for number in columns] for line in (heads, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    to_left = [heads[number] in ("what", "remarks") for number in columns]

    def joined(line: list[str]) -> str:
        padded = (t.ljust(w) if is_text else t.rjust(w) for t, w, is_text in zip(line, widths, to_left, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if is_text else "-" * (w - 1) + ":" for w, is_text in zip(widths, to_left, strict=True)]
    return "\n".join(map(joined, [cells[0], rule, *cells[1:]]))


def _cells(row: Result) -> list[str]:
    return [
        row.name,
        f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "",
        "" if row.mfu is None else f"{row.mfu:.1%}",
        "" if row.gib_predicted is None else f"{row.gib_predicted:.1f}",
        "" if row.gib_measured is None else f"{row.gib_measured:.1f}",
        row.remarks.replace("|", "/").replace("\n", " "),
    ]
