"""Tokenizers of llama2.c's models: a SentencePiece model, and the tokenizer.bin for its programs."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from wellread.corpus.sentencepiece import SPACE, Pieces, load
from wellread.errors import UserError

FILE = "tokenizer.model"
"""Name of the SentencePiece model in a model's directory."""
BIN = "tokenizer.bin"
"""Default file name of the tokenizer in llama2.c's programs."""


def read(path: Path, vocab: int) -> Pieces:
    """Read the SentencePiece model for a model with a vocabulary of size `vocab`.

    Raises
    ------
    UserError
        When the file is invalid, is not supported by llama2.c, or does not belong to this model.
    """
    try:
        pieces = Pieces(load(path))
    except UserError as error:
        raise UserError(str(error).removeprefix("--vocab ")) from None
    if not pieces.by_word:
        raise UserError(f"{path}: not supported by llama2.c; use a BPE tokenizer with identity normalization")
    if pieces.size != vocab:
        raise UserError(
            f"{path}: has {pieces.size:,} pieces, but the model has {vocab:,}; pass the tokenizer of the model"
        )
    if eos(pieces) < 0:
        raise UserError(f"{path}: has no end-of-sequence piece; pass the tokenizer of the model")
    return pieces


def eos(pieces: Pieces) -> int:
    """Id of the end-of-sequence piece; -1 without one."""
    return int(_processor(pieces).eos_id())


def to_bin(pieces: Pieces) -> bytes:
    """Content of tokenizer.bin: length of the longest piece in bytes; then score, length in bytes and text of each.

    Source: tokenizer.py of llama2.c. Its programs print pieces unchanged, so pieces contain real spaces here. The BOS
    and EOS pieces get line feeds around them, so that they never match a text.
    """
    processor = _processor(pieces)
    texts = [str(processor.id_to_piece(i)).replace(SPACE, " ").encode() for i in range(pieces.size)]
    texts[pieces.bos], texts[eos(pieces)] = b"\n<s>\n", b"\n</s>\n"
    entries = [struct.pack("<fI", processor.get_score(i), len(text)) + text for i, text in enumerate(texts)]
    return struct.pack("<I", max(map(len, texts))) + b"".join(entries)


def _processor(pieces: Pieces) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=pieces.model)
