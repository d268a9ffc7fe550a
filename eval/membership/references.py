"""The reference model of membership scores: step 0 of the run, or another model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.run import RunDirectory


def began_pretrained(run: RunDirectory) -> bool:
    """Whether a run began from pretrained weights, so that its step 0 is a model that has read other texts."""
    return str(run.manifest()["identity"].get("model", "")).startswith("weights:")


def reference_of(run: RunDirectory, name: str | None, samples: Corpus | Segments) -> Checkpoint | Path | None:
    """The reference model: a checkpoint of the run, a directory, or None.

    Parameters
    ----------
    name
        own, none, or a model; None: own if the run began from pretrained weights and has a checkpoint at step 0.

    Raises
    ------
    UserError
        When it does not exist, or has another vocabulary.
    """
    if name == "none" or (name is None and not began_pretrained(run)):
        return None
    if name in (None, "own"):
        from wellread.checkpoint import list_checkpoints

        first = [checkpoint for checkpoint in list_checkpoints(run.checkpoints) if checkpoint.step == 0]
        if not first and name:
            raise UserError(f"--reference own: {run.path} has no checkpoint at step 0; give --reference MODEL")
        return first[0] if first else None
    from wellread.corpus.segments import Segments
    from wellread.corpus.tokenizer import Tokenizer

    directory, corpus = model_named(name), samples.corpus if isinstance(samples, Segments) else samples
    check_reference(directory, name, Tokenizer.load(corpus.tokenizer), corpus.longest)
    return directory


def model_named(name: str, flag: str = "--reference") -> Path:
    """Directory of a model by name: a directory, RUN, RUN@step-N, or a name that `--model` accepts."""
    from wellread.models import registry
    from wellread.models.directories import local_directory
    from wellread.named import model_directory

    if Path(name).exists() or Path(name.rpartition("@")[0] or name).is_dir():
        return model_directory(name)
    try:
        return local_directory(registry.find(name), weights=True)
    except UserError as error:
        raise UserError(str(error).replace("--model", flag, 1)) from None


def check_reference(directory: Path, name: str, tokenizer: Tokenizer, longest: int, flag: str = "--reference") -> None:
    """Refuse a reference model that reads other tokens than `tokenizer` gives, or fewer than `longest` at once.

    Raises
    ------
    UserError
        Names it by flag and `name`.
    """
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.models.continuations import positions
    from wellread.models.pretrained import configuration_in

    if Tokenizer.load(directory).backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UserError(f"{flag} {name}: has another vocabulary than the samples; choose one with the same")
    limit = positions(configuration_in(directory))
    if limit is not None and limit < longest:
        raise UserError(
            f"{flag} {name}: reads {limit:,} tokens, but samples have up to {longest:,}; choose one that reads as many"
        )
