"""Token columns of samples at a checkpoint, kept in `eval/tokens/` so that the model runs only once for each sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from eval.separation import Ints
from eval.token_store import SampleFile, TokenFile
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.config import Dtype
    from wellread.corpus.batch import Samples
    from wellread.run import RunDirectory
    from wellread.scores import Scores
    from wellread.tokens import Tokens

FileType = TypeVar("FileType", bound=SampleFile[Any])
Progress = Callable[[int], None]
"""Called with the number of samples scored so far."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How samples are scored."""

    device: str | None = None
    """Where the model runs (default: CUDA if there is a GPU, otherwise the CPU)."""
    verify: bool = False
    """Whether to hash the model's files again although they have not changed since the last time."""
    dtype: Dtype = "fp32"
    variant: str = ""
    """Name of the change that the samples had before they were scored; each has its own file."""

    def file_name(self, *words: str) -> str:
        """Name of a kept file: its words that are not empty, and the precision if it is not the usual one."""
        return ".".join([*filter(None, words), *([self.dtype] if self.dtype != "fp32" else []), "parquet"])


def token_file(run: RunDirectory, checkpoint: Checkpoint, how: How | None = None) -> TokenFile:
    """The file of token columns of `checkpoint`; it may be missing."""
    how = how or How()
    belongs_to = binding_of(checkpoint) | {"dtype": how.dtype, "variant": how.variant}
    return TokenFile(run.eval / "tokens" / how.file_name(checkpoint.path.name, how.variant), belongs_to)


def tokens_of(
    run: RunDirectory, checkpoint: Checkpoint, samples: Samples, ids: Ints, reporter: Reporter, how: How | None = None
) -> TokenFile:
    """The file with the token columns of these samples at `checkpoint`: the missing ones are computed and added.

    Parameters
    ----------
    ids
        Samples, int64[n], ascending.

    Raises
    ------
    UserError
        When the checkpoint has a file that its manifest does not list, or one that is missing or altered.
    """
    how = how or How()

    def compute(missing: Ints, progress: Progress) -> Iterator[Tokens]:
        return _run_model(checkpoint, samples, missing, how, progress)

    return fill_checked(token_file(run, checkpoint, how), (run, checkpoint), ids, reporter, compute, again=how.verify)


def tokens_under(
    run: RunDirectory, directory: Path, samples: Samples, ids: Ints, reporter: Reporter, how: How | None = None
) -> TokenFile:
    """The file with the token columns of these samples under a model that is not a checkpoint of the run.

    Its name has the hash of the model's weights; see `tokens_of`.
    """
    how = how or How()
    key = key_of_model(run, directory, again=how.verify)
    name = how.file_name(f"reference-{key[:12]}")
    file = TokenFile(run.eval / "tokens" / name, {"model": key, "dtype": how.dtype})

    def compute(missing: Ints, progress: Progress) -> Iterator[Tokens]:
        return run_directory(directory, samples, missing, how, progress)

    return fill(file, ids, reporter, compute)


def key_of_model(run: RunDirectory, directory: Path, *, again: bool = False) -> str:
    """Hash of the weights of a model that is not a checkpoint of the run, 32 hex digits.

    Parameters
    ----------
    again
        Whether to hash files again that have not changed since the last evaluation of the run.
    """
    from wellread.hashes import KeptHashes
    from wellread.models.directories import weights_hash

    return weights_hash(directory, KeptHashes(run.eval / "hashes" / "models.json", again))


def fill_checked(
    file: FileType,
    of: tuple[RunDirectory, Checkpoint],
    ids: Ints,
    reporter: Reporter,
    compute: Callable[[Ints, Progress], Iterator[Any]],
    *,
    again: bool,
) -> FileType:
    """`fill` under the model of a checkpoint, whose files are checked before they are used.

    Parameters
    ----------
    of
        The run, and its checkpoint.
    again
        Whether to check them in any case, and to hash files again that have not changed.

    Raises
    ------
    UserError
        When the checkpoint has a file that its manifest does not list, or one that is missing or altered.
    """
    if again:
        refuse_damaged(*of, again=True)

    def checked(missing: Ints, progress: Progress) -> Iterator[Any]:
        if not again:
            refuse_damaged(*of)
        return compute(missing, progress)

    return fill(file, ids, reporter, checked)


def fill(file: FileType, ids: Ints, reporter: Reporter, compute: Callable[[Ints, Progress], Iterator[Any]]) -> FileType:
    """Add the samples of `ids` that a file misses; other processes that want the same file wait.

    Parameters
    ----------
    compute
        Function of the missing ids, and of a function that is called with the number of samples scored so far.
    """
    missing, before = np.setdiff1d(ids, file.sample_id), reporter.scored
    if missing.size:
        with file.locked():
            file.recover()
            missing = np.setdiff1d(ids, file.sample_id)
            start = before + ids.size - missing.size
            reporter.move_to(start)
            if missing.size:
                file.write(compute(missing, lambda n_scored: reporter.move_to(start + n_scored)))
    reporter.move_to(before + ids.size)
    return file


def scores_of(
    run: RunDirectory,
    checkpoint: Checkpoint,
    corpus: Samples,
    ids: Ints,
    reporter: Reporter,
    device: str | None = None,
    verify: bool = False,
) -> Scores:
    """Log-likelihoods of samples at `checkpoint`; see `tokens_of`."""
    file = tokens_of(run, checkpoint, corpus, ids, reporter, How(device=device, verify=verify))
    return kept_scores(file, corpus, ids)


def kept_scores(file: TokenFile, samples: Samples, ids: Ints) -> Scores:
    """Log-likelihoods of samples that a file has."""
    from wellread.scores import Scores

    parts = [Scores.empty()]
    for tokens in by_part(file, samples, ids):
        totals = tokens.sums(tokens.logp)
        parts.append(Scores(sample_id=tokens.sample_id, n_targets=tokens.n_targets, log_likelihood=totals))
    return Scores.joined(parts)


def by_part(file: TokenFile, samples: Samples, ids: Ints) -> Iterator[Tokens]:
    """Token columns of samples that a file has, a part of them at a time, in the order of `ids`."""
    from wellread.models.score import in_parts

    for part in in_parts(samples.lengths(ids), PART_TOKENS):
        yield file.read(ids[part])


PART_TOKENS = 1 << 20
"""Tokens that are read at once: 20 MiB."""


def refuse_damaged(run: RunDirectory, checkpoint: Checkpoint, *, again: bool = False) -> None:
    """Refuse a checkpoint with files that its manifest does not list, or that are missing or altered.

    Parameters
    ----------
    again
        Whether to hash files again that have not changed since the last evaluation of the run.

    Raises
    ------
    UserError
        Names the file.
    """
    if not checkpoint.model.is_dir():
        raise UserError(
            f"{checkpoint.path}: has no model/, and {run.eval} has not kept all that was asked for; restore it, or "
            f"leave step {checkpoint.step} out of --steps"
        )
    checkpoint.refuse_damaged(run.eval / "hashes" / f"{checkpoint.path.name}.json", again)


def binding_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata that binds a file to this checkpoint: head of the record, and hash over the hashes of its model.

    The head is not enough: step 0 has the same head in every run, but different weights.
    """
    weights = {name: of["sha256"] for name, of in checkpoint.manifest["files"].items() if name.startswith("model/")}
    return {
        "record_head": checkpoint.head,
        "checkpoint": hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest(),
    }


def _run_model(checkpoint: Checkpoint, samples: Samples, ids: Ints, how: How, progress: Progress) -> Iterator[Tokens]:
    return run_directory(checkpoint.model, samples, ids, how, progress)


def run_directory(directory: Path, samples: Samples, ids: Ints, how: How, progress: Progress) -> Iterator[Tokens]:
    """Yield token columns of samples under the model in `directory`, a part of them at a time."""
    from wellread.processes import importing

    with importing():
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

    from wellread.models.load import loaded
    from wellread.models.score import score_tokens

    with loaded(directory, how.device) as (model, where):
        yield from score_tokens(model, samples, ids, dtype=how.dtype, progress=progress, device=where)
