"""SentencePiece models: training, fast encoding word by word, and writing in Hugging Face layout.

Training uses the settings of llama2.c's ``tinystories.py train_vocab``, so that its C program can read the result:
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
from wellread.whole import read_whole

SMALLEST, LARGEST = 512, 32_000
"""Smallest and largest size of a trained vocabulary."""
SPACE = "▁"
"""Character that replaces a space in pieces."""
BPE = 2
"""Model type in a SentencePiece file."""
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
"""Types of pieces in a SentencePiece file."""
LONGEST_WORD = 4192
"""Bytes of the longest word that SentencePiece trains on (its max_sentence_length)."""
CUT = LONGEST_WORD // 4
"""Characters of the parts of longer words: at most `LONGEST_WORD` bytes."""
RESERVED = "\u2585"
"""Character that SentencePiece uses for unknown characters."""
CACHED_WORDS = 1 << 18
"""Distinct words in the cache of encoded words; a larger cache is cleared."""


def count_words(counts: Counter[str], text: str) -> None:
    """Add the words of `text` to `counts`. Training needs only these counts.

    BPE never merges across spaces. llama2.c trains line by line, so line feeds and tabs also separate words.
    SentencePiece skips words above `LONGEST_WORD`, as in Chinese text or base64; they are cut. It also skips words with
    `RESERVED`, which therefore separates words too.
    """
    if RESERVED in text:
        counts[RESERVED] += text.count(RESERVED)
    for word in text.replace("\n", " ").replace("\t", " ").replace(RESERVED, " ").split(" "):
        if len(word) <= CUT or len(word.encode()) <= LONGEST_WORD:
            counts[word] += 1
        else:
            counts.update(word[start : start + CUT] for start in range(0, len(word), CUT))


def check_size(size: int) -> int:
    """Return `size` when a vocabulary of this size can be trained.

    Raises
    ------
    UserError
        When it is out of range.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"--vocab {size}: a trained vocabulary has {SMALLEST} to {LARGEST:,} pieces")
    return size


def train(counts: Counter[str], size: int) -> bytes:
    """Train a vocabulary on counted words; the same words give the same bytes, in any order.

    Parameters
    ----------
    counts : Counter
        Words, counted by `count_words`.
    size : int
        Number of pieces: 3 special ones, 256 bytes, characters and merges.

    Returns
    -------
    bytes
        A SentencePiece model.

    Raises
    ------
    UserError
        When the text has too few words or too many different characters for this size.
    """
    import sentencepiece

    model = io.BytesIO()
    words = sorted((word, n) for word, n in counts.items() if word and word != RESERVED)
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


def without_piece(counts: Counter[str], model: bytes) -> list[str]:
    """Characters of the counted words that have no piece, so that they are encoded as bytes.

    SentencePiece leaves some out without an error.
    """
    pieces = {piece.piece for piece in Pieces(model)._proto.pieces}
    return sorted({character for word in counts for character in word} - pieces - {SPACE})


def _explained(message: str, size: int) -> str:
    most = re.search(r"too high \(\d+\).*?<= (\d+)", message)
    if most and int(most[1]) < SMALLEST:
        return f"--vocab {size}: the text supports only {most[1]} of at least {SMALLEST} pieces; provide more text"
    if most:
        return f"--vocab {size}: larger than the text supports; choose at most {most[1]}, or provide more text"
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if least:
        return f"--vocab {size}: the text has more different characters than this; choose more than {least[1]}"
    return f"--vocab {size}: no vocabulary can be trained on this text ({' '.join(message.split())})"


def load(path: Path) -> bytes:
    """Read and check a SentencePiece model.

    Raises
    ------
    UserError
        When it cannot be read, is damaged, or has no beginning-of-sequence piece.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise UserError(f"--vocab {path}: cannot be read ({error.strerror})") from None
    try:
        bos = Pieces(content).bos  # SentencePiece parses the model here
    except RuntimeError:
        raise UserError(f"--vocab {path}: not a SentencePiece model, or a damaged one; give a .model file") from None
    if bos < 0:
        raise UserError(
            f"--vocab {path}: has no beginning-of-sequence piece, which separates stories; choose another model"
        )
    return content


@dataclass(frozen=True)
class Pieces:
    """One SentencePiece model, and a cache of the words that it has encoded."""

    model: bytes
    _cache: dict[str, bytes] = field(default_factory=dict, repr=False)

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
        """Number of pieces; ids are smaller than it."""
        return int(self._processor.vocab_size())

    @property
    def bos(self) -> int:
        """Id of the beginning-of-sequence piece; -1 when there is none."""
        return int(self._processor.bos_id())

    @cached_property
    def unknown(self) -> int | None:
        """Id of the piece for characters without a piece; None if they are encoded as bytes."""
        return None if self._proto.trainer_spec.byte_fallback else int(self._processor.unk_id())

    def unknown_text(self, text: str) -> str:
        """What of a text the first unknown piece represents."""
        pieces = self._processor.encode(text, return_type="proto").pieces
        return next((piece.surface for piece in pieces if piece.id == self.unknown), "")

    @cached_property
    def by_word(self) -> bool:
        """Whether the pieces of a text are the concatenated pieces of its words.

        True for BPE with identity normalization when no piece has a space after another character: then no merge
        joins characters of two words, and words are encoded independently.
        """
        proto = self._proto
        normal = proto.normalizer_spec
        return bool(
            proto.trainer_spec.model_type == BPE
            and normal.add_dummy_prefix
            and normal.escape_whitespaces
            and not (normal.precompiled_charsmap or normal.normalization_rule_tsv)
            and not proto.trainer_spec.treat_whitespace_as_suffix
            and any(p.piece == SPACE for p in proto.pieces)
            and all(SPACE not in p.piece.lstrip(SPACE) and p.type != USER_DEFINED for p in proto.pieces)
        )

    @cached_property
    def _collapses(self) -> bool:
        """Whether the model strips spaces at both ends and merges several spaces into one."""
        return bool(self._proto.normalizer_spec.remove_extra_whitespaces)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Pieces of a text, (length,): the same as SentencePiece's, but several times faster on running text.

        Words are looked up in a cache. SentencePiece encodes the complete text when encoding by word may differ: when
        the text contains SPACE, or spaces other than single ones between words.
        """
        if not self.by_word or SPACE in text:
            return np.array(self._processor.encode(text), dtype=np.uint32)
        words = text.split(" ")
        if "" in words:
            if not self._collapses:
                return np.array(self._processor.encode(text), dtype=np.uint32)
            words = [word for word in words if word]
        cache = self._cache
        try:
            ids = b"".join([cache[word] for word in words])
        except KeyError:
            self._learn(words)
            ids = b"".join([cache[word] for word in words])
        return np.frombuffer(ids, dtype=np.uint32)

    def starts(self, text: str) -> NDArray[np.int64]:
        """Character of `text` at which each of its pieces begins, (length,)."""
        begins = np.array([p.begin for p in self._processor.encode(text, return_type="proto").pieces], dtype=np.int64)
        if text.isascii():
            return begins
        in_bytes = np.cumsum([0, *(len(character.encode()) for character in text)])
        return np.asarray(np.searchsorted(in_bytes, begins, side="right") - 1)

    def _learn(self, words: list[str]) -> None:
        """Encode the words that are not in the cache, all in one call: the call costs more than a word."""
        cache = self._cache
        if len(cache) > CACHED_WORDS:
            cache.clear()
        new = [word for word in dict.fromkeys(words) if word not in cache]
        ids, begins = self._processor.encode(" ".join(new)), self._begins
        starts = [i for i, piece in enumerate(ids) if piece in begins]
        serialized = array("I", ids).tobytes()
        for word, start, stop in zip(new, starts, [*starts[1:], len(ids)], strict=True):
            cache[word] = serialized[4 * start : 4 * stop]

    @cached_property
    def _begins(self) -> frozenset[int]:
        """Ids of the pieces that begin a word."""
        return frozenset(i for i, piece in enumerate(self._proto.pieces) if piece.piece.startswith(SPACE))

    def decode(self, tokens: NDArray[Any]) -> str:
        """Text of piece ids; special pieces give no text."""
        return str(self._processor.decode(tokens.tolist()))

    def save(self, target: Path, positions: int) -> None:
        """Write ``tokenizer.model`` and the same tokenizer in Hugging Face layout to a new directory.

        Parameters
        ----------
        positions : int
            Longest sequence for which the tokenizer is used (``model_max_length``).
        """
        from transformers import PreTrainedTokenizerFast

        names = {kind: self._processor.id_to_piece(i) for kind, i in self._special().items()}
        unfinished = target.with_name(f".{target.name}.tmp")  # a killed build must not leave an incomplete tokenizer
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
        """The model as a `tokenizers.Tokenizer`, which `eval` and transformers use."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

        proto = self._proto
        vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        unknown = self._processor.id_to_piece(self._processor.unk_id())
        bytewise = bool(proto.trainer_spec.byte_fallback)
        model = models.BPE(vocab, _merges(proto), unk_token=unknown, fuse_unk=not bytewise, byte_fallback=bytewise)
        backend = Tokenizer(model)
        steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        if self._collapses:
            steps = [
                normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
                normalizers.Replace(Regex(" {2,}"), " "),
                *steps,
            ]
        backend.normalizer = normalizers.Sequence(steps)
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        begins = self._processor.id_to_piece(self.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", pair=f"{begins} $A {begins} $B", special_tokens=[(begins, self.bos)]
        )
        special = [piece.piece for piece in proto.pieces if piece.type not in (NORMAL, USER_DEFINED, BYTE)]
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
        return backend


def _merges(proto: Any) -> list[tuple[str, str]]:
    """All pairs of pieces whose concatenation is a piece, by the rank of that piece."""
    rank = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type in (NORMAL, USER_DEFINED)}
    ordered = sorted(rank, key=lambda piece: (-proto.pieces[rank[piece]].score, rank[piece]))
    return [
        (piece[:i], piece[i:])
        for piece in ordered
        for i in sorted(range(1, len(piece)), key=lambda i: (rank.get(piece[:i], -1), rank.get(piece[i:], -1)))
        if piece[:i] in rank and piece[i:] in rank
    ]
