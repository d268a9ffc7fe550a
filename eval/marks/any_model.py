"""Marks of any corpus under any model, without a run:

wellread marks --model pythia-70m --corpus corpora/NAME
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.groups import SEALED
from eval.kept import How, run_directory
from eval.marks.evaluation import rows_of
from eval.marks.statistics import describe
from eval.marks.variants import Variants, places_of, registered, texts_of
from eval.membership.compared import positions_of
from eval.membership.references import model_named
from eval.separation import Ints
from wellread.cli import new_parser, parse
from wellread.config import Dtype
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.results import Result

TRAINABLE = "trainable"
EXAMPLE = "example:\n  wellread marks --model pythia-70m --corpus corpora/dolly-0123456789ab"


@dataclass(frozen=True, kw_only=True)
class AnyModel:
    """Whether a model has learned the coins of a corpus with marks.

    Raises
    ------
    UserError
        When the corpus has no marks, or a setting is not valid.
    """

    model: str
    """Model: a name, NAME@REVISION, a directory, RUN or RUN@step-N; it reads the texts with its own tokenizer."""
    corpus: str
    """Corpus that was compiled with --marks."""
    out: str | None = None
    """Parquet file for the results (default: only print)."""
    max_samples: int = 500
    """Samples per group whose places are scored."""
    dtype: Dtype = "fp32"
    """Precision of the forward pass."""
    seed: int = 0
    """Seed for redraws and for drawing samples."""
    device: str | None = None
    """Where the model runs (default: CUDA if there is a GPU, otherwise the CPU)."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")
        if self.max_samples < 1:
            raise UserError(f"--max_samples {self.max_samples}: must be at least 1")
        if self._corpus.marks is None:
            raise UserError(f"--corpus {self.corpus}: has no marks; compile it with --marks")
        if self.out and not self.out.endswith(".parquet"):
            raise UserError(f"--out {self.out}: is written as Parquet; name it NAME.parquet")

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus.open(self.corpus)

    def rows(self, sample_id: Ints) -> dict[str, Ints]:
        """Rows of the table of each group: places of at most `max_samples` samples, drawn by `seed`."""
        rng, limit = np.random.default_rng(self.seed), self._corpus.n_trainable
        rows = dict[str, Ints]()
        for group, members in ((TRAINABLE, sample_id < limit), (SEALED, sample_id >= limit)):
            chosen_ids = rng.permutation(np.unique(sample_id[members]))[: self.max_samples]
            rows[group] = np.flatnonzero(np.isin(sample_id, chosen_ids))
        return rows

    def results(self) -> Iterator[Result]:
        """Task `marks`, groups `trainable` and `sealed`."""
        from wellread.corpus.tokenizer import Tokenizer
        from wellread.models.registry import revision_step

        draw, directory = self._corpus.marks, model_named(self.model, "--model")
        assert draw
        marks = registered(self._corpus.path, draw.seed, draw.sha256)
        longest = positions_of(directory, self._corpus.longest)
        tokenizer, how = Tokenizer.load(directory), How(device=self.device, dtype=self.dtype)
        groups = {group: rows for group, rows in self.rows(marks.sample_id).items() if rows.size}
        variants = Variants.of(marks, np.sort(np.concatenate(list(groups.values()))), tokenizer, longest)
        parts = run_directory(directory, variants, variants.ids, how, lambda _: None)
        all_totals = np.concatenate([part.sums(part.logp) for part in parts])  # of the texts of all groups
        for group, rows in groups.items():
            totals = all_totals[np.searchsorted(variants.ids, texts_of(rows))]
            for metric, row, n in describe(places_of(marks, rows, totals), self.seed):
                about: dict[str, Any] = {"run": "", "model": self.model, "step": revision_step(self.model), "tokens": 0}
                yield Result(**about, task="marks", group=group, metric=metric, n=n, **row)


def names_a_model(argv: Sequence[str]) -> bool:
    """Whether these arguments of `wellread marks` are those of any model instead of a run."""
    return any(word.partition("=")[0] in ("--model", "--corpus") for word in argv)


def main(argv: list[str]) -> int:
    """``wellread marks --model M --corpus DIR``: score the places, print the table, write it to ``--out``."""
    from wellread.results import write
    from wellread.terminal import say_narrow_table

    parser = new_parser("wellread marks", "Whether a model has learned the coins of a corpus with marks.", EXAMPLE)
    parser.add_class_arguments(AnyModel, nested_key=None, as_group=False)
    task = AnyModel(**dict(parse(parser, argv).as_dict()))
    results = list(task.results())
    say_narrow_table(["group", "places", "p", "excess", "taken likelier"], list(rows_of(results).values()))
    if task.out:
        write(Path(task.out), results)
        print(f"all results: {task.out}")
    return 0
