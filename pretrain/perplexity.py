"""Perplexity of each sample of a corpus under a given model, stored as a metric of the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wellread.corpus.read import Corpus
from wellread.corpus.tables import add_metrics
from wellread.errors import UserError
from wellread.models import registry
from wellread.models.directories import local_directory

NAME = "perplexity"


def check(model: str, seq_len: int) -> None:
    """Check, before anything is compiled, that there is such a model and that it can read samples of `seq_len` tokens.

    Raises
    ------
    UserError
        When there is none, or its positions are fewer.
    """
    from wellread.models.continuations import positions
    from wellread.models.pretrained import configuration_in

    limit = positions(configuration_in(local_directory(registry.find(model), weights=True)))
    if limit is not None and limit < seq_len:
        raise UserError(
            f"--perplexity {model}: reads {limit:,} tokens, but samples have up to {seq_len:,}; "
            "choose a model that reads as many, or a lower --seq_len"
        )


def add(build: Path, model: str) -> None:
    """Add the perplexity of each sample to the metrics of a corpus: exp of its mean loss over target tokens.

    Raises
    ------
    UserError
        When the vocabulary of the model is not that of the corpus.
    """
    from wellread.models.load import load_model
    from wellread.models.score import log_likelihoods

    corpus = Corpus.open(build)
    spec = registry.find(model)
    directory = local_directory(spec, weights=True)
    _check_vocabulary(corpus, directory, spec.vocab, model)
    print(f"scoring {corpus.n:,} samples with {model}", flush=True)
    scores, targets = log_likelihoods(load_model(directory).eval(), corpus, np.arange(corpus.n))
    add_metrics(build, {NAME: np.exp(-scores / targets).astype(np.float32)})


def _check_vocabulary(corpus: Corpus, directory: Path, rows: int, model: str) -> None:
    file = directory / "tokenizer.model"
    size = corpus.meta["tokenizer"]["size"]
    if size > rows or (file.is_file() and file.read_bytes() != (corpus.tokenizer / "tokenizer.model").read_bytes()):
        raise UserError(
            f"--perplexity {model}: its vocabulary is not that of the corpus ({size:,} pieces); "
            "prepare the corpus with --vocab MODEL_DIR/tokenizer.model"
        )
