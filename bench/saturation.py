"""The table of simulations of saturation in docs/evaluation.md.

    python -m bench.saturation [--simulations 200]

20 checkpoints, 256 items, a change of 3, a margin of 5%; seeds are fixed, so each call prints the same. The noise is
stated as the SD at each checkpoint, and as the paired SD: that of the difference of an item between two checkpoints,
the root of 2 times as large, because the noise of two checkpoints is independent. Steps without the rule of the first
half are those of the equivalence tests only; where nothing but the last checkpoint is equivalent to itself, the last.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.trainer import ROOT
from eval.saturation.verdict import CANNOT_TELL, NO_CHANGE, NOT_REACHED, PEAKED, SATURATED, flat_from, judge

MARGIN = 0.05
PAIRED = (0.1, 0.5, 0.1 * math.sqrt(2), 0.25 * math.sqrt(2), 0.5 * math.sqrt(2), math.sqrt(2), 2 * math.sqrt(2))
"""Paired SDs: two round ones, and those of a noise of 0.1, 0.25, 0.5, 1 and 2."""
HEADS = (
    *("paired SD", "noise (SD)", "exponential: saturated", "at step", "exponential: step without the rule"),
    *("power law t^-0.3: not reached", "power law: step without the rule", "rise and fall: peaked", "flat: no change"),
)


class Simulations:
    """Curves of one shape with one noise, and what is said of them."""

    def __init__(self, shape: str, paired: float, count: int) -> None:
        if str(ROOT / "tests") not in sys.path:
            sys.path.append(str(ROOT / "tests"))
        curves: Any = importlib.import_module("support.curves")
        noise = paired / math.sqrt(2)
        self.curves = [curves.simulated(shape, sd=noise, seed=seed) for seed in range(count)]

    def steps_without_rule(self) -> list[int]:
        """Step of each from which all later checkpoints equal the last one, wherever it is."""
        places = [flat_from(curve, MARGIN)[0] for curve in self.curves]
        return [
            int(curve.steps[-1 if place is None else place]) for curve, place in zip(self.curves, places, strict=True)
        ]

    def judged(self) -> tuple[Counter[str], list[int]]:
        """How often each verdict is given, and the steps of those that are saturated."""
        verdicts = [judge(curve, margin=MARGIN) for curve in self.curves]
        steps = [
            int(curve.steps[each.place])
            for curve, each in zip(self.curves, verdicts, strict=True)
            if each.verdict == SATURATED and each.place is not None
        ]
        return Counter(each.verdict for each in verdicts), steps


def row(paired: float, count: int) -> list[str]:
    """A row of the table."""
    of = {shape: Simulations(shape, paired, count) for shape in ("exponential", "power law", "rise and fall", "flat")}
    (exponential, steps), (power, _), (turn, _), (flat, _) = (each.judged() for each in of.values())
    return [
        f"{paired:.2g}",
        f"{paired / math.sqrt(2):.2g}",
        _share(exponential[SATURATED], count),
        _range(steps),
        _range(of["exponential"].steps_without_rule()),
        _share(power[NOT_REACHED], count),
        _range(of["power law"].steps_without_rule()),
        _share(turn[PEAKED], count),
        _share(flat[NO_CHANGE], count) + f" (`{CANNOT_TELL}`)" * (flat[CANNOT_TELL] == count),
    ]


def lines(count: int) -> Iterator[str]:
    """The table as Markdown."""
    yield _line(HEADS)
    yield "|---" * len(HEADS) + "|"
    for paired in sorted(PAIRED):
        yield _line(row(paired, count))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(number: int, count: int) -> str:
    return f"{100 * number / count:.3g}%"


def _range(steps: Sequence[int]) -> str:
    return f"{np.median(steps):,.0f} ({min(steps):,}–{max(steps):,})" if steps else "–"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200, help="Curves of each shape and noise.")
    for line in lines(parser.parse_args().simulations):
        print(line, flush=True)


if __name__ == "__main__":
    main()
