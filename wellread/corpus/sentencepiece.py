"""SentencePiece models: trained on texts, applied word by word, and written in Hugging Face layout.

The settings of training are those of llama2.c's ``tinystories.py train_vocab``, so that its C program reads the result:
BPE, every character covered, digits split, byte fallback, identity normalization.
"""

from __future__ import annotations

import io
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError

SMALLEST, LARGEST = 512, 32_000
"""Sizes of a trained vocabulary."""
BLANK = "▁"
"""How a piece spells a blank."""
BPE = 2
"""Model type in a SentencePiece file."""
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
"""Types of pieces in a SentencePiece file."""
CACHED_WORDS = 1 << 18
"""Distinct words whose pieces are kept; then the memory starts anew."""


def count_words(counts: Counter[str], text: str) -> None:
    """Add the words of `text` to `counts`, all that training needs to know of it.

    BPE never merges across blanks, and llama2.c trains line by line, so line feeds and tabs divide words, too.
    """
    counts.update(text.replace("\n", " ").replace("\t", " ").split(" "))


def check_size(size: int) -> int:
    """Give back the size of a vocabulary that can be trained.

    Raises
    ------
    UserError
        When it is out of range.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"--vocab {size}: a trained vocabulary has {SMALLEST} to {LARGEST:,} pieces")
    return size


def train(counts: Counter[str], size: int) -> bytes:
    """Train a vocabulary on counted words; the same words give the same bytes, whatever their order.

    Parameters
    ----------
    counts : Counter
        Words as `count_words` found them.
    size : int
        Number of pieces: 3 special ones, 256 bytes, characters and merges.

    Returns
    -------
    bytes
        A SentencePiece model.

    Raises
    ------
    UserError
        When the text has too few words or too many characters for that size.
    """
    import sentencepiece

    model = io.BytesIO()
    words = sorted((word, n) for word, n in counts.items() if word)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{n}" for word, n in words),
            input_format="tsv",
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=r" \342\201\207 ",
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explained(str(error), size)) from None
    return model.getvalue()


def _explained(message: str, size: int) -> str:
    most = re.search(r"too high \(\d+\).*?<= (\d+)", message)
    if most and int(most[1]) < SMALLEST:
        return f"--vocab {size}: the text supports {most[1]} pieces, and {SMALLEST} are the least; give more text"
    if most:
        return f"--vocab {size}: larger than the text supports; choose at most {most[1]}, or give more text"
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if least:
        return f"--vocab {size}: the text has more different characters than that; choose more than {least[1]}"
    return f"--vocab {size}: no vocabulary can be trained on this text ({' '.join(message.split())})"


def load(path: Path) -> bytes:
    """Read a SentencePiece model and check that it is one.

    Raises
    ------
    UserError
        When it cannot be read, is damaged, or lacks a beginning-of-sequence piece.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--vocab {path}: cannot be read ({error.strerror})") from None
    try:
        begins = Pieces(content).bos  # SentencePiece parses it here
    except RuntimeError:
        raise UserError(f"--vocab {path}: not a SentencePiece model, or a damaged one; name a .model file") from None
    if begins < 0:
        raise UserError(f"--vocab {path}: has no piece that begins a sequence; stories could not be told apart")
    return content


@dataclass(frozen=True)
class Pieces:
    """One SentencePiece model, and the words that it has already cut."""

    model: bytes
    _known: dict[str, bytes] = field(default_factory=dict, repr=False)

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _proto(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self.model)  # type: ignore[attr-defined]

    @property
    def size(self) -> int:
        """Number of pieces; ids lie below it."""
        return int(self._processor.vocab_size())

    @property
    def bos(self) -> int:
        """Id of the piece that begins a sequence; -1 without one."""
        return int(self._processor.bos_id())

    @cached_property
    def by_word(self) -> bool:
        """Whether a text's pieces are those of its words, one after the other.

        True for BPE with identity normalization when no piece has a blank after another character: merges then never
        cross the border before a blank, and words do not see each other.
        """
        proto = self._proto
        normal = proto.normalizer_spec
        return bool(
            proto.trainer_spec.model_type == BPE
            and normal.add_dummy_prefix
            and normal.escape_whitespaces
            and not (normal.precompiled_charsmap or normal.normalization_rule_tsv)
            and not proto.trainer_spec.treat_whitespace_as_suffix
            and any(p.piece == BLANK for p in proto.pieces)
            and all(BLANK not in p.piece.lstrip(BLANK) and p.type != USER_DEFINED for p in proto.pieces)
        )

    @cached_property
    def _collapses(self) -> bool:
        """Whether blanks at the ends are dropped, and several in a row count as one."""
        return bool(self._proto.normalizer_spec.remove_extra_whitespaces)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Pieces of a text, (length,): equal to SentencePiece's own, and several times faster on running text.

        Words are looked up in a memory of those seen before. A text whose blanks are not single ones between words,
        or that holds the sign for a blank, goes through SentencePiece as a whole where that makes a difference.
        """
        if not self.by_word or BLANK in text:
            return np.array(self._processor.encode(text), dtype=np.uint32)
        words = text.split(" ")
        if "" in words:
            if not self._collapses:
                return np.array(self._processor.encode(text), dtype=np.uint32)
            words = [word for word in words if word]
        known = self._known
        try:
            found = b"".join([known[word] for word in words])
        except KeyError:
            self._learn(words)
            found = b"".join([known[word] for word in words])
        return np.frombuffer(found, dtype=np.uint32)

    def _learn(self, words: list[str]) -> None:
        """Cut the words that are new, all in one call: a call costs more than a word."""
        known = self._known
        if len(known) > CACHED_WORDS:
            known.clear()
        new = [word for word in dict.fromkeys(words) if word not in known]
        ids, begins = self._processor.encode(" ".join(new)), self._begins
        starts = [i for i, piece in enumerate(ids) if piece in begins]
        packed = array("I", ids).tobytes()
        for word, start, stop in zip(new, starts, [*starts[1:], len(ids)], strict=True):
            known[word] = packed[4 * start : 4 * stop]

    @cached_property
    def _begins(self) -> frozenset[int]:
        """Pieces that begin a word."""
        return frozenset(i for i, piece in enumerate(self._proto.pieces) if piece.piece.startswith(BLANK))

    def decode(self, tokens: NDArray[Any]) -> str:
        """Text of some pieces; special ones say nothing."""
        return str(self._processor.decode(tokens.tolist()))

    def save(self, target: Path, positions: int) -> None:
        """Write ``tokenizer.model`` and the same tokenizer in Hugging Face layout to a new directory.

        Parameters
        ----------
        positions : int
            Longest sequence that the tokenizer is meant for.
        """
        from transformers import PreTrainedTokenizerFast

        names = {kind: self._processor.id_to_piece(i) for kind, i in self._special().items()}
        unfinished = target.with_name(f".{target.name}.tmp")  # a killed build must not leave half a tokenizer
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self._backend(), model_max_length=positions, clean_up_tokenization_spaces=False, **names
        )
        tokenizer.save_pretrained(unfinished)
        (unfinished / "tokenizer.model").write_bytes(self.model)
        unfinished.rename(target)

    def _special(self) -> dict[str, int]:
        ids = {kind: int(getattr(self._processor, f"{kind}_id")()) for kind in ("unk", "bos", "eos", "pad")}
        return {f"{kind}_token": i for kind, i in ids.items() if i >= 0}

    def _backend(self) -> Any:
        """The model as one of `tokenizers`, which `eval` and transformers read."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

        proto = self._proto
        vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        unknown = self._processor.id_to_piece(self._processor.unk_id())
        bytewise = bool(proto.trainer_spec.byte_fallback)
        model = models.BPE(vocab, _merges(proto), unk_token=unknown, fuse_unk=not bytewise, byte_fallback=bytewise)
        backend = Tokenizer(model)
        steps = [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        if self._collapses:
            steps = [
                normalizers.Replace(Regex(rf"\A +|[ {BLANK}]+\z"), ""),
                normalizers.Replace(Regex(" {2,}"), " "),
                *steps,
            ]
        backend.normalizer = normalizers.Sequence(steps)
        backend.decoder = decoders.Sequence(
            [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        begins = self._processor.id_to_piece(self.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", pair=f"{begins} $A {begins} $B", special_tokens=[(begins, self.bos)]
        )
        special = [piece.piece for piece in proto.pieces if piece.type not in (NORMAL, USER_DEFINED, BYTE)]
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
        return backend


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, by the rank of what comes out."""
    rank = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type in (NORMAL, USER_DEFINED)}
    ordered = sorted(rank, key=lambda piece: (-proto.pieces[rank[piece]].score, rank[piece]))
    return [
        (piece[:i], piece[i:])
        for piece in ordered
        for i in sorted(range(1, len(piece)), key=lambda i: (rank.get(piece[:i], -1), rank.get(piece[i:], -1)))
        if piece[:i] in rank and piece[i:] in rank
    ]
