"""Membership of any texts under any models, without a run:

wellread membership --model pythia-70m,pythia-160m --members a.jsonl --nonmembers b.jsonl --out results
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.kept import How, fill, run_directory
from eval.membership.checks import Checks, Samples, suspicions, with_corrected_p
from eval.membership.compare import Comparer, Side, describe
from eval.membership.evaluation import fractions
from eval.membership.files import TextSamples, documents_of, read_texts, refuse_overlap
from eval.membership.references import check_reference, model_named
from eval.membership.scores import Column, Inputs, needs, select_scores
from eval.membership.texts import LowerCase
from eval.separation import ALPHAS, Floats, Ints, nonmembers_needed, roc
from eval.token_store import TokenFile
from wellread.cli import new_parser, parse
from wellread.config import Dtype
from wellread.errors import UserError
from wellread.results import Result

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.tokens import Tokens

MEMBERS, NONMEMBERS = "members", "nonmembers"
EXAMPLE = (
    "example:\n  wellread membership --model pythia-70m,pythia-160m --members a.jsonl --nonmembers b.jsonl --out d"
)


@dataclass(frozen=True, kw_only=True)
class AnyModel:
    """Scores of texts that a model may have read, compared with texts that it has not read.

    Raises
    ------
    UserError
        When a setting is not valid.
    """

    model: str
    """Models, separated by commas: names, NAME@REVISION, directories, RUN or RUN@step-N."""
    members: str
    """JSONL file: a string, or an object with `text`, on each line."""
    nonmembers: str
    """JSONL file with texts that no model has read."""
    out: str | None = None
    """Directory for results, points of ROC curves and token columns (default: only print)."""
    threshold: str | None = None
    """JSONL file with texts that are classified by the threshold at each false-positive rate; needs --out."""
    csv: bool = False
    """Write all tables of --out as CSV, too."""
    scores: str | None = None
    """Scores: loss, zlib, lowercase, min_k, min_k++, with a reference model reference, ez (default: all of these)."""
    k: str = "0.1,0.2,0.3,0.5"
    """Fractions of tokens for min_k and min_k++."""
    reference: str | None = None
    """Reference model with the vocabulary of all models (default: none)."""
    max_tokens: int = 2048
    """Tokens of a text that are scored; at most what the model reads."""
    dtype: Dtype = "fp32"
    """Precision of the forward pass."""
    bootstrap: int = 1000
    """Number of bootstrap resamples per interval, and of shuffles for the control."""
    seed: int = 0
    """Seed for resampling."""
    device: str | None = None
    """Where the models run (default: CUDA if there is a GPU, otherwise the CPU)."""
    texts: dict[str, list[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.bootstrap < 100:
            raise UserError(f"--bootstrap {self.bootstrap}: too few for an interval; give at least 100")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")
        if self.max_tokens < 2:
            raise UserError(f"--max_tokens {self.max_tokens}: nothing to score; give at least 2")
        if self.out is None and (self.threshold or self.csv):
            raise UserError(f"{'--threshold' if self.threshold else '--csv'}: writes files; add --out DIR")
        _ = self.columns
        self.texts.update({MEMBERS: read_texts(Path(self.members)), NONMEMBERS: read_texts(Path(self.nonmembers))})
        for flag, name, file in (("--members", MEMBERS, self.members), ("--nonmembers", NONMEMBERS, self.nonmembers)):
            if len(set(self.texts[name])) < 2:
                raise UserError(f"{flag} {file}: fewer than two different texts; there is nothing to compare")
        refuse_overlap(self.texts[MEMBERS], self.texts[NONMEMBERS])
        needed = nonmembers_needed(max(ALPHAS))
        if self.threshold and len(self.texts[NONMEMBERS]) < needed:
            raise UserError(f"--threshold: needs {needed:,} non-members, but {self.nonmembers} has fewer; add texts")
        self.texts["threshold"] = read_texts(Path(self.threshold)) if self.threshold else []

    @cached_property
    def columns(self) -> list[Column]:
        """The scores."""
        names = [name.strip() for name in self.scores.split(",")] if self.scores is not None else []
        return select_scores(
            names, fractions(self.k), has_reference=self.reference is not None, add="--reference MODEL"
        )

    @cached_property
    def all_texts(self) -> list[str]:
        """Members, non-members, and texts to classify."""
        return [text for texts in self.texts.values() for text in texts]

    def ids(self, name: str) -> Ints:
        """Places in `all_texts` of the texts of one file."""
        start = sum(len(self.texts[each]) for each in list(self.texts)[: list(self.texts).index(name)])
        return np.arange(start, start + len(self.texts[name]))

    def distinct_models(self, notes: Callable[[str], None]) -> dict[str, Path]:
        """Name -> directory of each model; of models with the same weights only the first, with a note."""
        from wellread.files import sha256_file
        from wellread.models.directories import weight_files

        directories, of_weights = dict[str, Path](), dict[tuple[str, ...], str]()
        for name in dict.fromkeys(os.path.expanduser(word.strip()) for word in self.model.split(",")):
            directory = model_named(name, "--model")
            weights = tuple(sha256_file(path) for path in weight_files(directory))
            if weights in of_weights:
                notes(f"{of_weights[weights]} and {name} have the same weights; they are compared once")
                continue
            of_weights[weights] = name
            directories[name] = directory
        return directories

    def values(self, directory: Path, folder: Path, reporter: Reporter) -> dict[str, Floats]:
        """Name of each score -> its values for all texts under one model, float64[n]; NaN where it is not defined."""
        samples = self._samples(directory)
        if samples.truncated:
            reporter.note(f"{directory.name}: {samples.truncated:,} texts are truncated to {samples.longest:,} tokens")
        required, ids = needs(self.columns), np.arange(len(self.all_texts))
        reference = model_named(self.reference) if self.reference and "reference" in required else None
        if reference:
            check_reference(reference, str(self.reference), samples.tokenizer, samples.longest)
        more: dict[str, Any] = {"zlib": samples.zlib()} if "zlib" in required else {}
        if "lowercase" in required:
            lower = LowerCase(samples, samples.longest, tokenizer=samples.tokenizer)
            more["lowercase"] = self._file(directory, folder, lower, "lowercase", reporter).read(ids)
        if reference:
            more["reference"] = self._file(reference, folder, samples, "", reporter).read(ids)
        inputs = Inputs(tokens=self._file(directory, folder, samples, "", reporter).read(ids), **more)
        return {column.name: column.score.values(inputs, column.k) for column in self.columns}

    def _samples(self, directory: Path) -> TextSamples:
        from wellread.corpus.tokenizer import Tokenizer
        from wellread.models.pretrained import configuration_in

        positions = getattr(configuration_in(directory), "max_position_embeddings", None) or self.max_tokens
        return TextSamples(self.all_texts, Tokenizer.load(directory), min(self.max_tokens, positions))

    def _file(
        self, directory: Path, folder: Path, samples: TextSamples | LowerCase, variant: str, reporter: Reporter
    ) -> TokenFile:
        from wellread.models.directories import fingerprint_directory

        model = fingerprint_directory(directory).rpartition(":")[2]
        texts = hashlib.sha256("\0".join([str(samples.longest), *self.all_texts]).encode()).hexdigest()
        key = {"model": model, "texts": texts, "dtype": self.dtype, "variant": variant}
        name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:12]
        how = How(device=self.device, dtype=self.dtype)

        def compute(missing: Ints, progress: Callable[[int], None]) -> Iterator[Tokens]:
            return run_directory(directory, samples, missing, how, progress)

        file = TokenFile(folder / "tokens" / f"{name}.parquet", key)
        return fill(file, np.arange(len(self.all_texts)), reporter, compute)

    def _side(self, ids: Ints, values: Floats) -> Side:
        return Side(values[ids], self._checks.samples.documents[ids])

    def results(self, name: str, values: dict[str, Floats]) -> list[Result]:
        """Results of one model: task `membership/SCORE`, groups `members`, `nonmembers`, `shuffled`.

        If there are copies between the files, also `members without copies`.
        """
        comparer, results = Comparer(self.bootstrap, self.seed), []
        pairs = self._pairs | self._checks.without_copies(self._pairs)
        for column in self.columns:
            sides = {group: self._side(self.ids(group), values[column.name]) for group in (MEMBERS, NONMEMBERS)}
            rows = [*describe(sides, is_loss=column.name == "loss")]
            compared = {
                group: (self._side(members, values[column.name]), self._side(nonmembers, values[column.name]))
                for group, (members, nonmembers) in pairs.items()
            }
            rows += comparer.rows(compared, NONMEMBERS)
            results += [self._result(name, f"membership/{column.name}", row) for row in rows]
        return results

    def _result(self, model: str, task: str, row: dict[str, Any]) -> Result:
        from wellread.models.registry import revision_step

        return Result(run="", model=model, step=revision_step(model), tokens=0, task=task, **row)

    def gates(self) -> list[Result]:
        """Whether members can be distinguished without a model, and copies between the files."""
        return [self._result("", task, row) for task, row in self._checks.rows(self._pairs)]

    @property
    def _pairs(self) -> dict[str, tuple[Ints, Ints]]:
        return {MEMBERS: (self.ids(MEMBERS), self.ids(NONMEMBERS))}

    @cached_property
    def _checks(self) -> Checks:
        lengths, texts = np.array([len(text) for text in self.all_texts]), self.all_texts
        documents = documents_of(texts)
        samples = Samples(
            "files", lambda ids: [texts[i] for i in ids.tolist()], lambda ids: lengths[ids], [], documents
        )
        return Checks(samples, self.seed)


def roc_rows(name: str, score: str, members: Floats, nonmembers: Floats) -> dict[str, Any]:
    """Points of one ROC curve, as columns; a text with a score of at least `threshold` is called a member."""
    sides = [side[~np.isnan(side)] for side in (members, nonmembers)]
    fpr, tpr = roc(*sides)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate(sides))[::-1]])
    return {"model": [name] * fpr.size, "score": [score] * fpr.size, "fpr": fpr, "tpr": tpr, "threshold": thresholds}


def main(argv: list[str]) -> int:
    """``wellread membership --model …``: score the texts, print the table, write files below ``--out``."""
    parser = new_parser("wellread membership", "Compare scores of any texts under any models.", EXAMPLE)
    parser.add_class_arguments(AnyModel, nested_key=None, as_group=False, skip={"texts", "csv"})
    parser.add_argument("--csv", action="store_true", help="Write all tables of --out as CSV, too.")
    return run(AnyModel(**dict(parse(parser, argv).as_dict())))


def run(task: AnyModel) -> int:
    """Score, compare, print and write."""
    from eval.membership.any_output import classify, show, write
    from eval.progress import Reporter

    n, values = len(task.texts[NONMEMBERS]), dict[str, dict[str, Floats]]()
    with tempfile.TemporaryDirectory() as temporary, Reporter(len(task.all_texts), True) as reporter:
        for alpha in ALPHAS:
            if n < nonmembers_needed(alpha):
                reporter.note(
                    f"no TPR at {100 * alpha:g}% FPR: it needs {nonmembers_needed(alpha):,} non-members, not {n:,}"
                )
        models = task.distinct_models(reporter.note)
        results = task.gates()
        for name, directory in models.items():
            values[name] = task.values(directory, Path(task.out or temporary), reporter)
            results += task.results(name, values[name])
    results = list(with_corrected_p(results))
    curves = [
        roc_rows(name, score, column[task.ids(MEMBERS)], column[task.ids(NONMEMBERS)])
        for name, scores in values.items()
        for score, column in scores.items()
    ]
    show(results)
    if task.out:
        write(Path(task.out), results, curves, csv=task.csv)
        if task.threshold:
            classify(Path(task.out), task.ids("threshold"), results, values, csv=task.csv)
    for line in suspicions(results):
        print(line)
    return 0
