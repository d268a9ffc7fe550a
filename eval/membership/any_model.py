"""Membership of any texts under any models, without a run:

wellread membership --model pythia-70m,pythia-160m --members a.jsonl --nonmembers b.jsonl --out results
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.kept import How
from eval.membership.any_store import Stored
from eval.membership.checks import suspicions, with_corrected_p
from eval.membership.compare import Comparer, Side, describe
from eval.membership.compared import MEMBERS, NONMEMBERS, Compared, Texts
from eval.membership.evaluation import fractions
from eval.membership.files import read_texts, refuse_overlap
from eval.membership.references import check_reference, model_named
from eval.membership.scores import Column, Inputs, needs, passes, select_scores
from eval.membership.sequential import Sequential
from eval.membership.texts import LowerCase
from eval.separation import ALPHAS, Floats, Ints, nonmembers_needed, roc
from wellread.cli import new_parser, parse
from wellread.config import Dtype
from wellread.errors import UserError
from wellread.hashes import KeptHashes
from wellread.results import Result
from wellread.units import plural

if TYPE_CHECKING:
    from eval.progress import Reporter

EXAMPLE = (
    "examples:\n  wellread membership --model pythia-70m,pythia-160m --members a.jsonl --nonmembers b.jsonl --out d\n"
    "  wellread membership --model pythia-70m@step3000 --corpus pile/document --order sequential --batch_size 1024"
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
    members: str | None = None
    """JSONL file: a string, or an object with `text`, on each line."""
    nonmembers: str | None = None
    """JSONL file with texts that no model has read."""
    corpus: str | None = None
    """Instead of files: a Megatron data set PREFIX or a compiled corpus that models NAME@stepN were trained on."""
    order: str = "sequential"
    """With --corpus: sequential, pythia or megatron:DOC,SAMPLE,SHUFFLE.npy."""
    batch_size: int | None = None
    """With --corpus: samples per batch of the training; published models have their own (default)."""
    max_samples: int = 2000
    """With --corpus: samples that are read, and as many that are not, drawn by --seed."""
    out: str | None = None
    """Directory for results, points of ROC curves and token columns (default: only print)."""
    threshold: str | None = None
    """JSONL file with texts that are classified by the threshold at each false-positive rate; needs --out."""
    csv: bool = False
    """Write all tables of --out as CSV, too."""
    scores: str | None = None
    """Scores: loss, zlib, lowercase, min_k, min_k++, with a reference model reference, ez (default: all of these), and
    only on request recall, gradnorm."""
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
        if self.corpus is None:
            _ = self._texts
            return
        if self.members or self.nonmembers or self.threshold:
            flag = next(name for name in ("members", "nonmembers", "threshold") if getattr(self, name))
            raise UserError(
                f"--corpus and --{flag}: compare either samples of a corpus or texts of files; leave one out"
            )
        if self.max_samples < 2:
            raise UserError(f"--max_samples {self.max_samples}: nothing to compare; give at least 2")
        for name in self._names:
            self._sequential.n_read(name)

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(os.path.expanduser(word.strip()) for word in self.model.split(",")))

    @property
    def _recall(self) -> bool:
        return "prefixed" in needs(self.columns)

    @cached_property
    def _hashes(self) -> KeptHashes:
        """Hashes of the files of models: each file is read once in a call, and nothing is kept for the next."""
        return KeptHashes()

    @cached_property
    def _sequential(self) -> Sequential:
        """The corpus."""
        return Sequential(
            name=str(self.corpus),
            order=self.order,
            batch_size=self.batch_size,
            max_samples=self.max_samples,
            max_tokens=self.max_tokens,
            seed=self.seed,
            recall=self._recall,
        )

    @cached_property
    def columns(self) -> list[Column]:
        """The scores."""
        names = [name.strip() for name in self.scores.split(",")] if self.scores is not None else []
        return select_scores(
            names, fractions(self.k), has_reference=self.reference is not None, add="--reference MODEL"
        )

    @cached_property
    def _texts(self) -> Compared:
        """The texts of the files."""
        names = {"--members": self.members, "--nonmembers": self.nonmembers}
        if missing := [flag for flag, name in names.items() if name is None]:
            raise UserError(f"{missing[0]} is missing; give two files of texts, or --corpus")
        files = {flag: Path(str(name)) for flag, name in names.items()}
        texts = {flag: read_texts(file) for flag, file in files.items()}
        for flag, file in files.items():
            if len(set(texts[flag])) < 2:
                raise UserError(f"{flag} {file}: fewer than two different texts; there is nothing to compare")
        refuse_overlap(texts["--members"], texts["--nonmembers"])
        unlabeled = read_texts(Path(self.threshold)) if self.threshold else []
        members, nonmembers = texts.values()
        compared = Texts(members, nonmembers, unlabeled, self.max_tokens).compared(recall=self._recall, seed=self.seed)
        needed = nonmembers_needed(max(ALPHAS))
        if self.threshold and compared.nonmembers.size < needed:
            raise UserError(f"--threshold: needs {needed:,} non-members, but {self.nonmembers} has fewer; add texts")
        return compared

    def compared(self, name: str, directory: Path) -> Compared:
        """What a model, by name and with its files, is compared on."""
        return self._sequential.compared(name, directory) if self.corpus else self._texts

    def distinct_models(self, notes: Callable[[str], None]) -> dict[str, Path]:
        """Name -> directory of each model; of models with the same weights only the first, with a note."""
        from wellread.models.directories import weight_files

        directories, of_weights = dict[str, Path](), dict[tuple[str, ...], str]()
        for name in self._names:
            directory = model_named(name, "--model")
            weights = tuple(self._hashes.sha256(path) for path in weight_files(directory))
            if weights in of_weights:
                notes(f"{of_weights[weights]} and {name} have the same weights; they are compared once")
                continue
            of_weights[weights] = name
            directories[name] = directory
        return directories

    def values(self, compared: Compared, directory: Path, folder: Path, reporter: Reporter) -> dict[str, Floats]:
        """Name of each score -> its values for all samples under one model, float64[n]; NaN where it is not defined."""
        samples, ids, required = compared.read(directory), np.arange(compared.n), needs(self.columns)
        if samples.truncated:
            longest = int(samples.lengths(ids).max())
            reporter.note(f"{directory.name}: {samples.truncated:,} texts are truncated to {longest:,} tokens")
        stored = Stored(compared, samples, folder, How(device=self.device, dtype=self.dtype), reporter, self._hashes)
        reference = model_named(self.reference) if self.reference and "reference" in required else None
        if reference:
            check_reference(reference, str(self.reference), samples.tokenizer, samples.longest)
        more: dict[str, Any] = {}
        if "prefixed" in required:  # first: it may be refused
            variant, prefixed = compared.prefixed(samples, directory)
            more["prefixed"] = stored.tokens(directory, prefixed, variant).read(ids)
        if "zlib" in required:
            more["zlib"] = samples.zlib()
        if "lowercase" in required:
            lower = LowerCase(samples, samples.longest, tokenizer=samples.tokenizer)
            more["lowercase"] = stored.tokens(directory, lower, "lowercase").read(ids)
        if reference:
            more["reference"] = stored.tokens(reference, samples).read(ids)
        if "gradients" in required:
            more["gradients"] = stored.norms(directory).read(ids)
        inputs = Inputs(tokens=stored.tokens(directory, samples).read(ids), **more)
        return {column.name: column.values(inputs) for column in self.columns}

    def results(self, name: str, compared: Compared, values: dict[str, Floats]) -> list[Result]:
        """Results of one model: task `membership/SCORE`, groups `members`, `nonmembers`, `shuffled`.

        If there are copies between the two, also `members without copies`.
        """
        comparer, results = Comparer(self.bootstrap, self.seed), []
        pairs = {MEMBERS: compared.sides}
        pairs |= compared.checks.without_copies(pairs)
        for column in self.columns:

            def side(ids: Ints, of: Floats = values[column.name], documents: Ints = compared.documents) -> Side:
                return Side(of[ids], documents[ids])

            groups = {MEMBERS: side(compared.members), NONMEMBERS: side(compared.nonmembers)}
            rows = [*describe(groups, is_loss=column.name == "loss")]
            rows += comparer.rows({group: (side(a), side(b)) for group, (a, b) in pairs.items()}, NONMEMBERS)
            results += [self._result(name, f"membership/{column.name}", row) for row in rows]
        return results

    def _result(self, model: str, task: str, row: dict[str, Any]) -> Result:
        from wellread.models.registry import revision_step

        return Result(run="", model=model, step=revision_step(model), tokens=0, task=task, **row)

    def gates(self, compared: dict[str, Compared]) -> Iterator[Result]:
        """Whether members can be distinguished without a model, and copies: once for files, for a corpus by model."""
        for name, of in compared.items() if self.corpus else [("", next(iter(compared.values())))]:
            for task, row in of.checks.rows({MEMBERS: of.sides}):
                yield self._result(name, task, row)


def roc_rows(name: str, score: str, members: Floats, nonmembers: Floats) -> dict[str, Any]:
    """Points of one ROC curve, as columns; a text with a score of at least `threshold` is called a member."""
    sides = [side[~np.isnan(side)] for side in (members, nonmembers)]
    fpr, tpr = roc(*sides)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate(sides))[::-1]])
    return {"model": [name] * fpr.size, "score": [score] * fpr.size, "fpr": fpr, "tpr": tpr, "threshold": thresholds}


def main(argv: list[str]) -> int:
    """``wellread membership --model …``: score the texts, print the table, write files below ``--out``."""
    parser = new_parser("wellread membership", "Compare scores of any texts under any models.", EXAMPLE)
    parser.add_class_arguments(AnyModel, nested_key=None, as_group=False, skip={"csv"})
    parser.add_argument("--csv", action="store_true", help="Write all tables of --out as CSV, too.")
    return run(AnyModel(**dict(parse(parser, argv).as_dict())))


def run(task: AnyModel) -> int:
    """Score, compare, print and write."""
    from eval.membership.any_output import classify, show, write
    from eval.progress import Reporter

    remarks, values = list[str](), dict[str, dict[str, Floats]]()
    models = task.distinct_models(remarks.append)
    compared = {name: task.compared(name, directory) for name, directory in models.items()}
    remarks += dict.fromkeys(remark for of in compared.values() for remark in _remarks(of))
    total = passes(task.columns) * sum(of.n for of in compared.values())
    with tempfile.TemporaryDirectory() as temporary, Reporter(total, True) as reporter:
        for remark in remarks:
            reporter.note(remark)
        results = list(task.gates(compared))
        for name, directory in models.items():
            values[name] = task.values(compared[name], directory, Path(task.out or temporary), reporter)
            results += task.results(name, compared[name], values[name])
    results = list(with_corrected_p(results))
    curves = [
        roc_rows(name, score, *(column[ids] for ids in compared[name].sides))
        for name, scores in values.items()
        for score, column in scores.items()
    ]
    show(results)
    if task.out:
        write(Path(task.out), results, curves, csv=task.csv)
        if task.threshold:
            unlabeled = next(iter(compared.values())).unlabeled
            classify(Path(task.out), unlabeled, results, values, csv=task.csv)
    for line in suspicions(results):
        print(line)
    return 0


def _remarks(compared: Compared) -> Iterator[str]:
    """Which rates the number of non-members does not allow, and how many are the prefix of recall."""
    n = compared.nonmembers.size
    for alpha in ALPHAS:
        if n < nonmembers_needed(alpha):
            yield f"no TPR at {100 * alpha:g}% FPR: it needs {nonmembers_needed(alpha):,} non-members, not {n:,}"
    if compared.shots.size:
        yield f"recall: its prefix is of {plural(compared.shots.size, 'non-member')}, in no group"
