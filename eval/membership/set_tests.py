"""The order test and dataset inference at a checkpoint of a run: which samples, scores and controls they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.groups import READ, SEALED, UNREAD, draw_documents
from eval.membership.whole_sets import Readings, halves, inference_rows, order_rows
from eval.randomness import Randomness
from eval.separation import Floats, Ints
from eval.statistics import TooFew
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.groups import Groups
    from wellread.run import RunDirectory

Row = dict[str, Any]

TESTS = ("order", "inference")
"""Names in `--tests`."""
MOST = 1000
"""Documents of each group that dataset inference looks at, as in Maini et al. 2024."""
ORDERED_SCORES = ("loss", "reference")
"""Scores whose correlation with the time of reading is tested."""


@dataclass(frozen=True)
class SetTests:
    """The tests of `--tests` on a run."""

    run: RunDirectory
    division: Groups
    names: Sequence[str]
    seed: int

    @cached_property
    def random(self) -> Randomness:
        """What is random in the order of the run."""
        return Randomness.of(self.run)

    def rows(self, step: int, values: Mapping[str, Floats], note: Callable[[str], None]) -> Iterator[tuple[str, Row]]:
        """Yield task and row of each test at a checkpoint.

        Parameters
        ----------
        values
            Name of each score -> its values for the samples of all groups (`Groups.all`), float64[n]; NaN where it is
            not defined. Scores that are equal for all samples say nothing and are left out.
        note
            Called with the reason why a test is left out.
        """
        if self.names and not self.division.at(step)[READ].size:
            note(f"step {step:,}: nothing is read, so there are no tests of groups")
            return
        usable = {name: of for name, of in values.items() if np.unique(of[~np.isnan(of)]).size > 1}
        cases = {"order": self._order(step, usable), "inference": self._inference(step, usable)}
        for name in self.names:
            for task, rows in cases[name]:
                try:
                    yield from ((task, row) for row in rows)
                except TooFew as error:
                    note(f"step {step:,}: {error}; left out")

    def readings(self, step: int) -> Readings:
        """Last reading before `step` of each trainable sample of the corpus."""
        from wellread.corpus.read import Corpus
        from wellread.record.reader import Record

        batch_size = self.run.manifest()["identity"]["order"]["batch_size"]
        n = Corpus.open(self.run.corpus).n_trainable
        return Readings.of(Record.open(self.run.record), step, n, batch_size, self.random)

    def _order(self, step: int, values: Mapping[str, Floats]) -> Iterator[tuple[str, Iterable[Row]]]:
        from wellread.corpus.segments import Segments

        units, corpus = self.division.at(step)[READ], self.division.corpus
        if not units.size:
            return
        samples = corpus.sample_of(units) if isinstance(corpus, Segments) else units
        readings, places = self.readings(step).at(samples), self._places(step, units)
        for name in ORDERED_SCORES:
            if name in values:
                scores, documents = values[name][places], self.division.documents[units]
                rows = order_rows(scores, samples, documents, readings, self.random, self.seed)
                yield f"order_test/{name}", ({"group": READ, **row} for row in rows)

    def _inference(self, step: int, values: Mapping[str, Floats]) -> Iterator[tuple[str, Iterable[Row]]]:
        """Read and unread against sealed samples; as a check, sealed ones against each other."""
        groups = {name: ids for name, ids in self.division.at(step).items() if ids.size}
        if SEALED not in groups or not values:
            return
        groups = {
            name: draw_documents(ids, self.division.documents[ids], MOST, self.seed) for name, ids in groups.items()
        }
        sealed = groups[SEALED]
        sides = {name: (groups[name], sealed) for name in (READ, UNREAD) if name in groups}
        sides[SEALED] = halves(sealed, self.division.documents[sealed], self.seed)
        for name, (members, nonmembers) in sides.items():
            places = self._places(step, members), self._places(step, nonmembers)
            documents = self.division.documents[members], self.division.documents[nonmembers]
            rows = inference_rows(values, places, documents, self.seed)
            yield "dataset_inference", ({"group": name, **row} for row in rows)

    def _places(self, step: int, ids: Ints) -> Ints:
        return np.searchsorted(self.division.all(step), ids)


def select_tests(words: str | None, run: RunDirectory) -> list[str]:
    """The tests of `--tests`; by default those that the order of the run allows.

    Raises
    ------
    UserError
        When a name is not in the table, or the order does not allow the test that was asked for.
    """
    why = Randomness.of(run).why_not()
    if words is None:
        return [name for name in TESTS if name != "order" or not why]
    names = list(dict.fromkeys(word.strip() for word in words.split(",")))
    for name in names:
        if name != "none" and name not in TESTS:
            raise UserError(f"--tests {name}: not a test; choose from {', '.join(TESTS)}, none")
    if "order" in names and why:
        raise UserError(f"--tests order: {why}; leave it out")
    return [name for name in names if name != "none"]
