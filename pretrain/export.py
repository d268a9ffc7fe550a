"""``wellread export``: write a model in a format of other programs."""

from __future__ import annotations

from pathlib import Path

from wellread.corpus import tokenizer
from wellread.errors import UserError
from wellread.files import new_directory, replacing, require_folder, write_atomic
from wellread.models import load
from wellread.models.llama2c import tokenizer_bin, writer

HUGGING_FACE = "hf"


def export(model: Path, form: str, out: Path) -> None:
    """Write a saved model in another format, with its adapter merged into the weights.

    Parameters
    ----------
    form : str
        One of `writer.FORMATS`, or hf.
    out : Path
        File to create; for hf a directory to create.

    Raises
    ------
    UserError
        When the format is unknown, or does not support this model.
    """
    if form == HUGGING_FACE:
        return _to_hugging_face(model, out)
    for llama2c_format in writer.FORMATS:
        if form == llama2c_format:
            return _to_llama2c(model, llama2c_format, out)
    raise UserError(f"--format {form}: unknown; choose {', '.join(writer.FORMATS)} or {HUGGING_FACE}")


def _to_hugging_face(model: Path, out: Path) -> None:
    source = load.Source.of(model)
    with new_directory(out) as directory:
        load.export(source, directory)
        tokenizer.copy_files(model, directory)
    print(f"{out}: model and tokenizer in Hugging Face layout, fp32")


def _to_llama2c(model: Path, form: writer.Format, out: Path) -> None:
    require_folder(out)
    if out.exists():
        raise UserError(
            f"{out}: {'is a directory; choose a file' if out.is_dir() else 'already exists; choose another'}"
        )
    weights = writer.weights(model)
    group = writer.group_size(*weights.sizes[:2]) if form == writer.INT8 else None
    if group is not None and group < writer.SMALLEST_GROUP:
        raise UserError(
            f"--format {form}: one scale for {group} weights each, because the widths {weights.sizes[0]} and "
            f"{weights.sizes[1]} have no larger common divisor; the file would be larger than llama2c-v1"
        )
    content, bin_path = _tokenizer_bin(model, weights.config.vocab_size), out.with_name(tokenizer_bin.BIN)
    if bin_path.exists() and bin_path.read_bytes() != content:
        raise UserError(f"{bin_path}: is the tokenizer of another model; choose another folder for {out.name}")
    with replacing(out) as file:
        writer.write(weights, file, form)
    print(f"{out}: {out.stat().st_size:,} bytes, {form}" + (f", one scale for {group} weights each" if group else ""))
    if content is None:
        print(f"no {tokenizer_bin.BIN} written: there is no SentencePiece model ({tokenizer_bin.FILE}) in {model}")
        return
    write_atomic(bin_path, content)
    print(f"{bin_path}: its tokenizer, for llama2.c's programs")


def _tokenizer_bin(model: Path, vocab: int) -> bytes | None:
    """The tokenizer in the format of llama2.c's programs; None if the model has no SentencePiece tokenizer."""
    file = model / tokenizer_bin.FILE
    return tokenizer_bin.to_bin(tokenizer_bin.read(file, vocab)) if file.is_file() else None
