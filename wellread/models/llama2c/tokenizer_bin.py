"""Tokenizers of llama2.c's models: a SentencePiece model, and the tokenizer.bin that its programs read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from wellread.corpus.sentencepiece import SPACE, Pieces, load
from wellread.errors import UserError

FILE = "tokenizer.model"
"""Name of the SentencePiece model in a model's directory."""
BIN = "tokenizer.bin"
"""Where llama2.c's programs look for theirs, unless they are told."""


def read(path: Path, words: int) -> Pieces:
    """Read the SentencePiece model of a model with so many words.

    Raises
    ------
    UserError
        When it is none, is of another kind than llama2.c's, or is not of this model.
    """
    try:
        pieces = Pieces(load(path))
    except UserError as error:
        raise UserError(str(error).removeprefix("--vocab ")) from None
    if not pieces.by_word:
        raise UserError(f"{path}: not a tokenizer that llama2.c knows, which is BPE with identity normalization")
    if pieces.size != words:
        raise UserError(f"{path}: has {pieces.size:,} pieces, the model {words:,} words; name the model's own")
    if eos(pieces) < 0:
        raise UserError(f"{path}: has no piece that ends a sequence")
    return pieces


def eos(pieces: Pieces) -> int:
    """Id of the piece that ends a sequence; -1 without one."""
    return int(_processor(pieces).eos_id())


def to_bin(pieces: Pieces) -> bytes:
    """Content of tokenizer.bin: bytes of the longest piece; then score, length in bytes and text of each.

    Source: tokenizer.py of llama2.c. Its programs print pieces as they stand, so blanks are blanks here; the marks of
    a sequence have line feeds around them, so that no text can spell them.
    """
    processor = _processor(pieces)
    texts = [str(processor.id_to_piece(i)).replace(SPACE, " ").encode() for i in range(pieces.size)]
    texts[pieces.bos], texts[eos(pieces)] = b"\n<s>\n", b"\n</s>\n"
    entries = [struct.pack("<fI", processor.get_score(i), len(text)) + text for i, text in enumerate(texts)]
    return struct.pack("<I", max(map(len, texts))) + b"".join(entries)


def _processor(pieces: Pieces) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=pieces.model)
