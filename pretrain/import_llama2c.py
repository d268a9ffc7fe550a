"""``wellread import``: convert a checkpoint of llama2.c or pickled weights to a model directory with safetensors."""

from __future__ import annotations

from pathlib import Path

from wellread.files import new_directory
from wellread.models.llama2c import tokenizer_bin
from wellread.models.llama2c.reader import Llama2cFile, write_model


def import_llama2c(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write model and tokenizer to a new directory.

    Raises
    ------
    UserError
        When the files are damaged or do not belong together, or `out` already exists.
    """
    source = Llama2cFile.open(checkpoint)
    spec = source.header.spec
    pieces = tokenizer_bin.read(tokenizer, spec.vocab)
    with new_directory(out) as directory:
        pieces.save(directory, spec.positions)
        write_model(source, directory, pieces.bos, tokenizer_bin.eos(pieces))
    print(f"{out}: {spec.layers} layers, width {spec.width}, vocabulary {spec.vocab:,}")


def import_directory(directory: Path, out: Path) -> None:
    """Write a model with pickled weights to a new directory, in safetensors.

    Raises
    ------
    UserError
        When the directory has no such weights, a file contains more than tensors, or `out` already exists.
    """
    from wellread.models.convert import to_safetensors

    with new_directory(out) as unfinished:
        count = to_safetensors(directory, unfinished)
    print(f"{out}: {count:,} tensors, in safetensors")
