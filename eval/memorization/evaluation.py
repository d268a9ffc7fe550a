"""How much of what it read does a checkpoint give back? Run with

    wellread memorization runs/NAME

All numbers are arithmetic on the token columns of `eval/tokens/`, which membership uses, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.continuations import first_run
from eval.evaluation import PerCheckpoint
from eval.groups import READ, SEALED, UNREAD, Groups
from eval.intervals import clustered_share
from eval.kept import How, by_part, tokens_of
from eval.membership.divisions import DIVISIONS
from eval.memorization import generated, order
from eval.memorization.extraction import Suffixes, documents_needed
from eval.memorization.section import BLOCK, order_rows
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.randomness import Randomness
from eval.section import Section
from eval.separation import Floats, Ints
from eval.statistics import TooFew
from wellread.config import Dtype
from wellread.errors import UserError
from wellread.units import plural

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result
    from wellread.run import RunDirectory

LEVELS = (0.1, 0.5, 0.9)
"""Probabilities p of (n, p)-discoverable extraction."""
COPIES = (1, 2, 3, 5, 9, 17)
"""Bounds of groups by number of trainable samples of one document: `copies:3-4` has 3 or 4."""
MAIN = (READ, UNREAD, SEALED)


@dataclass(frozen=True)
class Extracted:
    """What is known of the suffixes at a checkpoint."""

    suffixes: Suffixes
    generated: Floats | None
    """Share of suffix tokens that free generation matches, of each sample; None unless it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Memorization(PerCheckpoint[Extracted]):
    """Extraction of the true suffix of samples at each checkpoint, without generating unless `generate` is set.

    The prefix of a text is its first `prefix` tokens, that of an instruction sample its prompt and the first `prefix`
    target tokens. The next `suffix` target tokens are the suffix. Samples without so many in a row are left out.

    Raises
    ------
    UserError
        When a setting is not valid.
    """

    prefix: int = 32
    """Tokens of the prefix; for instruction samples target tokens after the prompt."""
    suffix: int = 32
    """Tokens of the suffix that is extracted."""
    tries: str = "1,100,1000"
    """Numbers of draws for discoverable extraction."""
    rate: float | None = None
    """Also say how many documents would show that at most this share can be extracted (default: do not)."""
    dtype: Dtype = "fp32"
    """Precision of the forward pass; each has its own kept columns."""
    generate: bool = False
    """Whether to generate, too: the share of suffix tokens that free greedy generation matches."""

    name: ClassVar[str] = "memorization"
    summary: ClassVar[str] = "which samples can be extracted from each checkpoint: greedy, or in n draws"
    switches: ClassVar[dict[str, str]] = {
        "generate": "Also generate after the prefix, in fp32, and count matching tokens (Pythia's score); slow.",
    }
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, a_whole_record)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prefix", "suffix", "max_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.rate is not None and not 0 < self.rate < 1:
            raise UserError(f"--rate {self.rate}: must be between 0 and 1")
        _ = self._tries

    @cached_property
    def _tries(self) -> list[int]:
        words = [word.strip() for word in self.tries.split(",")]
        for word in words:
            if not word.isdecimal() or int(word) < 1:
                raise UserError(f"--tries {word}: expected numbers of draws of at least 1, e.g. 1,100,1000")
        return list(dict.fromkeys(map(int, words)))

    @cached_property
    def division(self) -> Groups:
        """The groups of the run."""
        return Groups.of(self.run, self.max_samples, self.seed)

    @cached_property
    def _is_text(self) -> bool:
        from wellread.corpus.read import Corpus

        return Corpus.open(self.run.corpus).meta.get("kind") == "text"

    @property
    def _skip(self) -> int:
        """Target tokens of the prefix: the first token of a text is not a target."""
        return self.prefix - 1 if self._is_text else self.prefix

    @cached_property
    def _long(self) -> dict[int, bool]:
        return {}

    def _eligible(self, ids: Ints) -> Ints:
        """Samples whose first run of targets has a prefix and a suffix."""
        for i in ids.tolist():
            if i not in self._long:
                self._long[i] = first_run(self.division.corpus.targets(i))[1] >= self._skip + self.suffix
        return np.asarray(ids[np.array([self._long[i] for i in ids.tolist()], dtype=bool)])

    def size(self, step: int) -> int:
        """Samples of all groups at `step` that are long enough."""
        return self._eligible(self.division.all(step)).size * (1 + self.generate)

    def notes(self) -> Iterator[str]:
        """The window, what is left out, and why."""
        if self._is_text:
            of = f"the first {plural(self.prefix, 'token')} of a text"
        else:
            of = f"the prompt and the first {plural(self.prefix, 'target token')}"
        yield f"prefix: {of}; suffix: the next {plural(self.suffix, 'token')}, each after the true ones"
        steps = [checkpoint.step for checkpoint in self.checkpoints]
        yield from self.division.notes(steps)
        if steps:
            ids = self.division.all(steps[-1])
            if short := ids.size - self._eligible(ids).size:
                yield f"{short:,} of {ids.size:,} samples at step {steps[-1]:,} too short, left out"
        if self._why_no_unread:
            yield f"unread samples are not a control and are left out: {self._why_no_unread}"
            yield f"training order is not tested: {self._why_no_unread}"
        if self.rate is not None:
            yield f"no sample of {documents_needed(self.rate):,} documents would show a rate of at most {self.rate:g}"

    @cached_property
    def _why_no_unread(self) -> str:
        """Why unread samples are not a control, and the order cannot be tested; empty if both can."""
        return Randomness.why_no_control(self.run)

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Extracted:
        """The suffixes of the samples of all groups, from kept token columns; the model runs for missing ones."""
        ids, corpus = self._eligible(self.division.all(checkpoint.step)), self.division.corpus
        how = How(device=self.device, verify=self.verify, dtype=self.dtype)
        file = tokens_of(self.run, checkpoint, corpus, ids, reporter, how)
        empty = Suffixes(ids[:0], np.empty(0), np.empty(0))
        parts = (Suffixes.of(tokens, self._skip, self.suffix) for tokens in by_part(file, corpus, ids))
        suffixes = Suffixes.joined([empty, *parts])
        return Extracted(suffixes, self._generated(checkpoint, ids, reporter) if self.generate else None)

    def _generated(self, checkpoint: Checkpoint, ids: Ints, reporter: Reporter) -> Floats:
        """Scores of free generation, in the order of `ids`, which is that of `Suffixes`."""
        file = generated.Generated.at(self.run, checkpoint, self.prefix, self.suffix)
        work = generated.Work(self.division.corpus, self._skip, self.suffix, self.device)
        return generated.scores(self.run, checkpoint, file, work, ids, lambda n: reporter.move_to(reporter.scored + n))

    def measure(self, checkpoint: Checkpoint, scores: Extracted, reporter: Reporter) -> Iterator[Result]:
        """Shares of each group."""
        task = f"{self.name}/{self.prefix}_{self.suffix}"
        suffixes = scores.suffixes
        undefined = int(np.isnan(suffixes.matched).sum())
        if undefined:
            reporter.note(f"step {checkpoint.step:,}: the suffix of {plural(undefined, 'sample')} is not defined")
        for group, members in self._groups(checkpoint.step):
            long = self._eligible(members)
            of = suffixes.at(long)
            left_out = {"too_short": members.size - long.size, "undefined": long.size - of.sample_id.size}
            for metric, count in left_out.items():
                yield self.result(checkpoint, task=task, group=group, metric=metric, value=float(count), n=members.size)
            if of.sample_id.size:
                for metric, row in (*self._shares(of), *self._free(scores, of)):
                    yield self.result(checkpoint, task=task, group=group, metric=metric, n=of.sample_id.size, **row)
        for group, metric, row in self._order(checkpoint.step, suffixes, reporter):
            yield self.result(checkpoint, task=task, group=group, metric=metric, **row)

    def _shares(self, of: Suffixes) -> Iterator[tuple[str, dict[str, Any]]]:
        documents = self.division.documents[of.sample_id]
        yield "extractible", clustered_share(of.extractible, documents)
        yield "matched", clustered_share(of.matched, documents)
        for tries in self._tries:
            chance = of.chance(tries)
            yield f"drawn@{tries}", clustered_share(chance, documents)
            for level in LEVELS:
                above = (chance >= level).astype(np.float64)
                yield f"discoverable@{tries},{level:g}", clustered_share(above, documents)

    def _free(self, scores: Extracted, of: Suffixes) -> Iterator[tuple[str, dict[str, Any]]]:
        """Pythia's score, and in how many samples it is 1 where a rank is not 0, or the reverse: equal logits."""
        if scores.generated is not None:
            values = scores.generated[np.searchsorted(scores.suffixes.sample_id, of.sample_id)]
            yield "generated", clustered_share(values, self.division.documents[of.sample_id])
            yield "generated_differs", {"value": float(((values == 1) != (of.extractible == 1)).sum())}

    def _order(self, step: int, suffixes: Suffixes, reporter: Reporter) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Group, metric and row of the test whether extractible samples depend on when they were read."""
        of = suffixes.at(np.setdiff1d(self._eligible(self.division.at(step)[READ]), self._selected))
        if not of.sample_id.size or self._why_no_unread:
            return
        last_read, times = (column[of.sample_id] for column in self.division.history(step))
        codes = self.division.document_codes
        copies = np.bincount(codes)[codes][of.sample_id]
        documents = self.division.documents[of.sample_id]
        try:
            test = order.trend(of.extractible, last_read, times, copies, documents, seed=self.seed)
        except TooFew as error:
            reporter.note(f"step {step:,}: {error}")
            return
        for metric, row in order.rows(test):
            yield READ, metric, row
        for number, (count, size) in enumerate(zip(test.counts.tolist(), test.sizes.tolist(), strict=True)):
            yield f"{BLOCK}{number}", "memorized", {"value": float(count), "n": size}

    @property
    def _selected(self) -> Ints:
        selected = self.division.selected
        return np.empty(0, dtype=np.int64) if selected is None else selected

    def _groups(self, step: int) -> Iterator[tuple[str, Ints]]:
        """Name and samples of each group that is not empty."""
        at = self.division.at(step)
        groups = [(name, at[name]) for name in MAIN if name != UNREAD or not self._why_no_unread]
        for name in ("age", "times"):
            groups += [(group, members) for group, members, _ in DIVISIONS[name](self.division, step)]
        groups += self._by_copies(at[READ])
        return ((name, members) for name, members in groups if members.size)

    def _by_copies(self, members: Ints) -> Iterator[tuple[str, Ints]]:
        codes = self.division.document_codes
        copies = np.bincount(codes)[codes][members]
        for low, high in zip(COPIES, (*COPIES[1:], None), strict=True):
            last = "" if high is None else high - 1
            name = f"copies:{low}" if last == low else f"copies:{low}-{last}"
            yield name, members[(copies >= low) & (copies < (high or np.inf))]

    def headline(self, results: Sequence[Result]) -> str:
        """How many samples of each main group are extractible."""
        rows = [each for each in results if each.metric == "extractible" and each.group in MAIN]
        return "extractible: " + (", ".join(map(_words, rows)) or "no sample is long enough")

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """The main groups at each checkpoint, all groups at the last; the table on disk has all numbers."""
        last = max((each.step for each in results), default=0)
        metrics = [m for m in dict.fromkeys(each.metric for each in results) if m.startswith(("drawn@", "generated"))]
        values = {(each.step, each.group, each.metric): each for each in results}
        rows: list[list[object]] = []
        for (step, group, metric), each in values.items():
            if metric == "extractible" and (step == last or group in MAIN):
                more = [values[step, group, name].value for name in ("matched", *metrics)]
                rows.append([f"{step}", group, each.n, _words(each).partition(" ")[2], *more])
        return ["step", "group", "n", "extractible", "rank 0", *metrics], rows

    @classmethod
    def conclusions(cls, results: Sequence[Result]) -> Iterator[str]:
        """The test of the order of reading, at each checkpoint that has memorized something."""
        for step, memorized, p, ratio, low, high, detectable, plot in order_rows(results):
            rate = "no maximum" if ratio is None else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
            yield (
                f"step {step}: training order: {memorized} memorized, p {p}; rate at the end / at the start {rate}; "
                f"80% power at {detectable:.2f}, where the Q-Q plot has {plot:.0%}"
            )

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Shares, and the order of reading."""
        from eval.memorization.section import section

        return section(run, results, *cls.overview(results)) if results else None


def _words(result: Result) -> str:
    """``read 0 of 128 (at most 2.3%)``; the limit only for 0."""
    count = round(result.value * result.n)
    limit = f" (at most {result.ci_high:.1%})" if not count and result.ci_high is not None else ""
    return f"{result.group} {count} of {result.n}{limit}"
