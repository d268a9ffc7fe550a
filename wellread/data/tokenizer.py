"""Tokenizers: loaded from a model's directory, or trained on the data for a model that starts from nothing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_ENCODING = {"split_special_tokens": True, "verbose": False}
"""Not verbose: transformers would warn of texts beyond the model's positions, which are cut to ``--seq_len`` here."""
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Tokenizer:
    """A model's own tokenizer, with batch encoding that keeps prompt and response apart."""

    backend: Any
    """The transformers tokenizer."""

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Load the tokenizer that lies in `directory`.

        Raises
        ------
        ValueError
            When there is none, or it has no end-of-sequence token.
        """
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{directory}: no usable tokenizer ({reason}); put its tokenizer.json there") from None
        if backend.eos_token_id is None:
            raise ValueError(f"{directory}: its tokenizer has no eos_token; name one in tokenizer_config.json")
        return cls(backend)

    @property
    def eos(self) -> int:
        """Id of the end-of-sequence token."""
        return int(self.backend.eos_token_id)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included; ids lie below it."""
        return len(self.backend)

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """Encode openings of samples: with the beginning-of-sequence token where the tokenizer wants one.

        A text that spells a special token stays text: a row that quotes ``<|endoftext|>`` does not end there.
        """
        encoded = self.backend(texts, add_special_tokens=True, **_ENCODING)["input_ids"]
        return [ids[:-1] if ids and ids[-1] == self.eos and len(ids) > 1 else ids for ids in encoded]

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """Encode texts that continue a sample: no special tokens, not even where the text spells one."""
        encoded: list[list[int]] = self.backend(texts, add_special_tokens=False, **_ENCODING)["input_ids"]
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def copy_files(source: Path, target: Path) -> None:
    """Copy the tokenizer's own files from one directory to another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
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

    It is trained on every document, sealed ones too: then read and sealed texts stay exchangeable, and a
    difference between their losses can only come from training.
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
    unfinished = target.with_name(f".{target.name}.tmp")  # a killed build must not leave half a tokenizer to the next
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)


def identify(directory: Path | None, vocab_size: int) -> str:
    """Identity of a tokenizer before it exists: that of a directory's files, or of what one is trained with (None)."""
    return f"bpe-{vocab_size}" if directory is None else fingerprint(directory)
