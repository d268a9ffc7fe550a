"""Tokenizers: loaded from a model's directory, or trained on the data for a model that is trained from scratch."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from wellread.corpus import chat
from wellread.corpus.coverage import Coverage, Loss
from wellread.corpus.plain import added, copied, without_first_space
from wellread.corpus.rendering import Message, Renderer
from wellread.errors import UserError
from wellread.text_io import FOREIGN_CODE, refuse_foreign, refuse_marked
from wellread.whole import unusable

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
TEMPLATE = "chat_template.jinja"
END_OF_TEXT = "<|endoftext|>"
T = TypeVar("T")


class EncodedChat(NamedTuple):
    """A chat in tokens."""

    tokens: list[int]
    """The chat, up to the end of the last answer. An end-of-sequence token is appended if the template has none."""
    spans: list[tuple[int, int]]
    """Half-open token ranges of the assistant's answers."""
    changes: list[chat.Change]
    """What the template changes in the messages."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model, which encodes prompts and responses separately, in batches."""

    backend: Any
    """The transformers tokenizer."""
    directory: Path | None = None
    """Where its files are."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Send to another process, which loads the files only if it needs more than encoding texts."""
        assert self.directory
        return _Sent, (self.directory, self.eos, self._around, self._serialized)

    @classmethod
    def load(cls, directory: Path, where: Path | None = None) -> Tokenizer:
        """Load the tokenizer of `directory`.

        Parameters
        ----------
        where : Path, optional
            Directory that errors name, if `directory` is a copy of its files.

        Raises
        ------
        UserError
            When there is none, it has no end-of-sequence token, or it draws the tokens of a text at random.
        """
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of transformers, tokenizers or the content of any of their files
            for name in FILES:
                if ((where or directory) / name).is_file():
                    refuse_foreign((where or directory) / name)
                    refuse_marked((where or directory) / name)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reason = FOREIGN_CODE if "custom code" in reason else reason
            raise UserError(
                f"{where or directory}: no usable tokenizer ({reason}); put its tokenizer.json into this directory"
            ) from None
        if not backend.is_fast:
            raise UserError(f"{where or directory}: its tokenizer has no fast version; convert it to a tokenizer.json")
        if backend.eos_token_id is None:
            raise UserError(f"{where or directory}: its tokenizer has no eos_token; set it in tokenizer_config.json")
        if dropout := getattr(backend.backend_tokenizer.model, "dropout", None):
            raise UserError(
                f"{where or directory}: its tokenizer.json sets dropout to {dropout:g}, so that a text has "
                "other tokens each time; set it to null"
            )
        return cls(backend, directory)

    @cached_property
    def eos(self) -> int:
        """Id of the end-of-sequence token."""
        return int(self.backend.eos_token_id)

    @property
    def size(self) -> int:
        """One more than the largest token id, including added tokens: ids may have gaps."""
        return int(max(self.backend.get_vocab().values())) + 1

    @property
    def begins(self) -> list[int]:
        """Token ids that the tokenizer puts before each text: its beginning-of-sequence token, or none."""
        return self._around[0]

    @cached_property
    def _around(self) -> tuple[list[int], int]:
        return added(self._plain)

    @cached_property
    def _serialized(self) -> str:
        return str(self.backend.backend_tokenizer.to_str())

    @cached_property
    def _plain(self) -> Any:
        """The `tokenizers.Tokenizer`, changed so that special tokens in a text are encoded as plain text."""
        return copied(self._serialized)

    @cached_property
    def _continuing(self) -> Any:
        """As `_plain`, but without the space that SentencePiece puts before a text: continuations follow a prompt."""
        changed = without_first_space(self._serialized)
        return self._plain if changed is None else copied(changed)

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """Encode the beginnings of samples, with the beginning-of-sequence token if the tokenizer uses one.

        Special tokens in a text are encoded as plain text: a row that quotes ``<|endoftext|>`` does not end there.
        """
        encoded = self._plain.encode_batch_fast(texts, add_special_tokens=True)
        return [self._open(encoding.ids) for encoding in encoded]

    def starts(self, texts: list[str]) -> list[list[int]]:
        """Character at which each token of `prompts` begins; 0 for a token that no character has."""
        encoded = self._plain.encode_batch(texts, add_special_tokens=True)
        return [[start for start, _ in self._open(encoding.offsets)] for encoding in encoded]

    def _open(self, parts: list[T]) -> list[T]:
        """Without the parts of the special tokens that end a text: a sample continues after it."""
        return parts[: len(parts) - self._around[1]]

    def losses(self, text: str) -> Iterator[Loss]:
        """Characters of a text that its tokens do not represent, by reason."""
        return self._coverage.losses(text)

    @property
    def represents_all(self) -> bool:
        """Whether it represents all characters, so that no text needs to be checked for `losses`."""
        return self._coverage.is_complete

    @cached_property
    def _coverage(self) -> Coverage:
        return Coverage(self._plain, self._serialized)

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """Encode texts that continue a sample: no special tokens, even if a text contains one."""
        return [encoding.ids for encoding in self._continuing.encode_batch_fast(texts, add_special_tokens=False)]

    def renderer(self, date: str) -> Renderer:
        """The chat template, for which `date` is today.

        Raises
        ------
        UserError
            When it is not a valid template. The text of the error continues a sentence that begins with "its chat".
        """
        return self._renderers.get(date) or self._renderers.setdefault(date, Renderer(self.backend, date))

    @cached_property
    def _renderers(self) -> dict[str, Renderer]:
        return {}

    def chat(self, messages: Sequence[Message], date: str) -> EncodedChat:
        """Encode one chat with the tokenizer's chat template.

        Parameters
        ----------
        messages : sequence of dict
            ``role`` and ``content`` of each message.
        date : str
            The date that the template takes for today, as YYYY-MM-DD.

        Raises
        ------
        UserError
            When the chat does not fit the template (see `wellread.corpus.chat.render`).
        """
        text, spans, changes = chat.render(self.renderer(date), self._special, messages)
        tokens, offsets = self.rendered(text)
        ranges = chat.scored(offsets, spans)
        if tokens[-1] not in self.special_ids and messages[-1]["content"].strip():
            tokens.append(self.eos)
            ranges[-1] = (ranges[-1][0], len(tokens))
        return EncodedChat(tokens, ranges, changes)

    def rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a rendered chat, with special tokens, and the half-open range of characters of each."""
        encoded = self.backend(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if self.begins and tokens[: len(self.begins)] != self.begins:
            return self.begins + tokens, [(0, 0)] * len(self.begins) + offsets
        return tokens, offsets

    def answers(self, messages: Sequence[Message], date: str) -> tuple[str, list[tuple[int, int] | None]]:
        """The text of a chat, and the half-open range of characters of each answer, without what ends it.

        None for an answer that is empty, or whose beginning the template writes.

        Raises
        ------
        UserError
            As `chat`.
        """
        text, spans, _ = chat.render(self.renderer(date), self._special, messages)
        answers = [each["content"].strip() for each in messages if each["role"] == "assistant"]
        starts = iter(chat.contents(text, spans, [*filter(None, answers)], self._special))
        at = [next(starts) if answer else -1 for answer in answers]
        ranges = zip(at, answers, strict=True)
        return text, [(start, start + len(answer)) if start >= 0 else None for start, answer in ranges]

    @cached_property
    def special_ids(self) -> set[int]:
        """Ids of all special tokens."""
        return {*self.backend.all_special_ids, *self._added}

    @cached_property
    def _added(self) -> dict[int, str]:
        return {i: str(token) for i, token in self.backend.added_tokens_decoder.items() if token.special}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Matches the text of any special token."""
        texts = sorted({*self.backend.all_special_tokens, *self._added.values()}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, including special tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


class _Sent(Tokenizer):
    """A tokenizer of another process. Texts are encoded without importing transformers; chats need it."""

    def __init__(self, directory: Path, eos: int, around: tuple[list[int], int], serialized: str) -> None:
        self.__dict__.update(directory=directory, eos=eos, _around=around, _serialized=serialized)

    @cached_property
    def backend(self) -> Any:
        """The transformers tokenizer."""
        assert self.directory
        return Tokenizer.load(self.directory).backend


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of the tokenizer from one directory to another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if problem := unusable(source / name):
            raise UserError(f"{source / name}: {problem}")
        if (source / name).is_file():
            if name == TEMPLATE:
                refuse_foreign(source / name)
            shutil.copyfile(source / name, target / name)


def fingerprint(directory: Path) -> str:
    """Hash of the tokenizer's files in `directory`."""
    digest = hashlib.sha256()
    for name in FILES:
        if (directory / name).is_file():
            content = (directory / name).read_bytes()
            digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int, target: Path, positions: int) -> None:
    """Train a byte-level BPE tokenizer on `texts` and write it to `target` in Hugging Face layout.

    It is trained on all documents, including sealed ones. So the tokenizer treats read and sealed texts equally, and a
    difference between their losses can only come from training the model.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=positions
    )
    unfinished = target.with_name(f".{target.name}.tmp")  # a killed build must not leave an incomplete tokenizer
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)


def identify(directory: Path | None, vocab_size: int) -> str:
    """Identity of a tokenizer: the hash of a directory's files; without one (None) the settings it is trained with."""
    return f"bpe-{vocab_size}" if directory is None else fingerprint(directory)
