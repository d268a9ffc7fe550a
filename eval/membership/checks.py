"""Checks next to every comparison of members with non-members: gates, and copies between the two groups.

They see the samples but no score. What they find is kept in `eval/checks.json`, since it depends on no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.groups import draw_documents
from eval.membership.copies import Copies, copies_between
from eval.membership.gates import FEWEST, SUSPECT, gate, permutations_for, shape, words
from eval.separation import Floats, Ints
from eval.statistics import detectable_auc, holm

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.results import Result

Row = dict[str, Any]
Sides = tuple[Ints, Ints]
"""Sample ids of members and of non-members."""

FILE = "checks.json"
VERSION = 2
"""Of the computation: increase it with any change to what is kept."""
MOST = 1000
"""Documents of each side that a gate looks at: enough to see an AUC of 0.54, in seconds."""
GATES = {"words": "words", "shape": "length, data set and category"}
"""Name of each gate -> what it sees."""
WITHOUT = " without copies"
"""End of the name of a group that excludes copies."""


@dataclass(frozen=True)
class Samples:
    """What is known about samples without a model."""

    identity: str
    """Hash of the samples: kept checks belong to it."""
    texts: Callable[[Ints], list[str]]
    lengths: Callable[[Ints], Ints]
    labels: Sequence[Sequence[object]]
    """Kinds of labels, such as data set and category; each has one label per sample."""
    documents: Ints
    """Document of each sample, int64[n]."""

    @classmethod
    def of(cls, corpus: Corpus | Segments, documents: Ints) -> Samples:
        """The samples of a corpus, or segments of a packed one."""
        from wellread.corpus.segments import Segments

        table = corpus.table if isinstance(corpus, Segments) else corpus.samples()
        labels = [table.column(name).to_pylist() for name in ("source", "category")]
        return cls(f"{corpus.hash}/{corpus.n}", texts_of(corpus), corpus.lengths, labels, documents)


def texts_of(corpus: Corpus | Segments) -> Callable[[Ints], list[str]]:
    """Function from sample ids to texts; without a tokenizer, token numbers as words. Loads it at the first call."""
    from wellread.corpus.decoder import FILE as TOKENIZER
    from wellread.corpus.decoder import Decoder

    directory = corpus.path / "tokenizer"
    decoder = cache(lambda: Decoder.load(directory) if (directory / TOKENIZER).is_file() else None)

    def texts(ids: Ints) -> list[str]:
        samples, loaded = (corpus.tokens(i).tolist() for i in ids.tolist()), decoder()
        return [loaded.decode(tokens) if loaded else " ".join(f"t{token}" for token in tokens) for tokens in samples]

    return texts


@dataclass
class Checks:
    """Gates and copies of groups, each computed once."""

    samples: Samples
    seed: int
    file: Path | None = None
    """Where results are kept; None: nowhere."""
    _results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file and self.file.exists():
            from wellread.files import read_json

            self._results = dict(read_json(self.file, {...: object}))

    def copies(self, sides: Sides) -> Copies:
        """Copies between the texts of the two groups."""

        def compute() -> dict[str, list[int]]:
            copies = copies_between(*(self.samples.texts(ids) for ids in sides), seed=self.seed)
            return {name: np.flatnonzero(mask).tolist() for name, mask in vars(copies).items()}

        places = self._once("copies", sides, compute)
        sizes = {name: sides["nonmembers" in name].size for name in places}
        return Copies(**{name: np.isin(np.arange(sizes[name]), at) for name, at in places.items()})

    def without_copies(self, pairs: Mapping[str, Sides]) -> dict[str, Sides]:
        """The groups that have copies, without them; the name of each ends in ` without copies`."""
        reduced = {}
        for name, (members, nonmembers) in pairs.items():
            if copies := self.copies((members, nonmembers)):
                reduced[name + WITHOUT] = members[~copies.members], nonmembers[~copies.nonmembers]
        return reduced

    def rows(self, pairs: Mapping[str, Sides]) -> Iterator[tuple[str, Row]]:
        """Yield task and row of each gate, and of the number of copies."""
        yield from ((f"gate/{kind}", row) for kind, row in self.gate_rows(pairs))
        yield from (("copies", row) for row in self.copies_rows(pairs))

    def copies_rows(self, pairs: Mapping[str, Sides]) -> Iterator[Row]:
        """Number of members and of non-members with a copy on the other side."""
        for name, sides in pairs.items():
            counts = {metric: float(mask.sum()) for metric, mask in vars(self.copies(sides)).items()}
            yield from (
                {"group": name, "metric": metric, "value": n, "n": sides[0].size} for metric, n in counts.items()
            )

    def gate_rows(self, pairs: Mapping[str, Sides]) -> Iterator[tuple[str, Row]]:
        """Yield `words` or `shape`, and a row: AUC, p, p after Holm over all gates of `pairs`, detectable AUC.

        Groups with fewer than 10 documents on a side have no gate; `too_small` names them.
        """
        small = self.too_small(pairs)
        tested = {name: self._reduced(sides) for name, sides in pairs.items() if name not in small}
        permutations = permutations_for(len(GATES) * len(tested))
        cases = [(name, sides, kind) for name, sides in tested.items() for kind in GATES]
        results = [self._gate(kind, sides, permutations) for _, sides, kind in cases]
        corrected = holm(np.array([p for _, p in results]))
        for (name, sides, kind), (auc, p), p_holm in zip(cases, results, corrected.tolist(), strict=True):
            smallest = detectable_auc(*self._documents(sides))
            for metric, value in {"auc": auc, "p": p, "p_holm": p_holm, "detectable_auc": smallest}.items():
                if value is not None:
                    yield kind, {"group": name, "metric": metric, "value": value, "n": sides[0].size}

    def too_small(self, pairs: Mapping[str, Sides]) -> list[str]:
        """Names of the groups with too few documents on a side for a gate."""
        return [name for name, sides in pairs.items() if min(self._documents(sides)) < FEWEST]

    def _documents(self, sides: Sides) -> tuple[int, int]:
        members, nonmembers = (int(np.unique(self.samples.documents[ids]).size) for ids in sides)
        return members, nonmembers

    def _reduced(self, sides: Sides) -> Sides:
        """The samples of at most `MOST` documents of each side."""
        members, nonmembers = (draw_documents(ids, self.samples.documents[ids], MOST, self.seed) for ids in sides)
        return members, nonmembers

    def _gate(self, kind: str, sides: Sides, permutations: int) -> tuple[float, float]:
        """AUC and p-value."""

        def compute() -> list[float]:
            ids = np.concatenate(sides)
            is_member = np.arange(ids.size) < sides[0].size
            documents = self.samples.documents[ids]
            result = gate(kind, self._gram(kind, ids), is_member, documents, permutations=permutations, seed=self.seed)
            return [result.auc, result.p]

        auc, p = self._once(f"{kind}/{permutations}", sides, compute)
        return float(auc), float(p)

    def _gram(self, kind: str, ids: Ints) -> Floats:
        if kind == "words":
            return words(self.samples.texts(ids))
        return shape(self.samples.lengths(ids), *([labels[i] for i in ids] for labels in self.samples.labels))

    def _once(self, name: str, sides: Sides, compute: Callable[[], Any]) -> Any:
        """The kept result of `compute`, which depends on the samples, the sides and the seed only."""
        hashed = hashlib.sha256(f"{VERSION}/{self.samples.identity}/{self.seed}/{sides[0].size}/".encode())
        for ids in sides:
            hashed.update(ids.astype("<i8").tobytes())
        key = f"{name}/{hashed.hexdigest()[:32]}"
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]

    def keep(self) -> None:
        """Write what was computed, for the next call."""
        from wellread.files import write_atomic

        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(self._results) + "\n")


def suspicions(results: Sequence[Result]) -> list[str]:
    """One line for each gate that distinguishes the groups: the ground truth of that comparison is suspect."""
    values = {(result.step, result.task, result.group, result.metric): result.value for result in results}
    of_run = any(result.run for result in results)
    return [
        f"ground truth suspect: {f'at step {step:,}, ' if of_run else ''}{task} distinguishes {group} from its "
        f"non-members without the model (AUC {values[step, task, group, 'auc']:.3f}, p {value:.2g} after Holm)"
        for (step, task, group, metric), value in values.items()
        if task.startswith("gate/") and metric == "p_holm" and value < SUSPECT
    ]


def with_corrected_p(results: Sequence[Result]) -> Iterator[Result]:
    """The results, each `p` of a score followed by its `p_holm`: corrected over scores, groups and checkpoints."""
    tested = [r for r in results if r.metric == "p" and r.task.startswith("membership/")]
    corrected = iter(holm(np.array([result.value for result in tested])).tolist())
    for result in results:
        yield result
        if result.metric == "p" and result.task.startswith("membership/"):
            yield replace(result, metric="p_holm", value=next(corrected))
