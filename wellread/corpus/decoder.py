"""Decode the tokens of a corpus with its tokenizer.json, so that reading a run needs neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wellread.corpus.plain import copied
from wellread.errors import UserError
from wellread.whole import read_whole

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_TOKEN_FILES = (SETTINGS, "special_tokens_map.json")
"""Files that, like added_tokens.json, may name tokens that tokenizer.json does not have."""
CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""Replacements of ``clean_up_tokenization_spaces``, in the order of transformers' ``clean_up_tokenization``."""


@dataclass(frozen=True)
class Decoder:
    """Decodes token ids exactly as transformers does with ``skip_special_tokens=False``."""

    backend: Any
    """The `tokenizers.Tokenizer`."""
    cleans: bool = False
    """Whether spaces before punctuation are removed (``clean_up_tokenization_spaces``)."""
    more_special: frozenset[int] = frozenset()
    """Special tokens that the files next to tokenizer.json name."""

    @classmethod
    def load(cls, directory: Path) -> Decoder:
        """Load the tokenizer of `directory`.

        transformers loads it when tokenizer.json is missing or does not have all tokens that the files next to it name.

        Raises
        ------
        UserError
            When there is none, it is damaged, or it needs transformers and transformers is not installed.
        """
        from tokenizers import Tokenizer, models

        file, settings = directory / FILE, _settings(directory / SETTINGS)
        if not file.is_file():
            backend = _by_transformers(directory, "it is missing")
        else:
            try:
                backend = Tokenizer.from_file(str(file))
            except Exception as error:  # the package raises no more specific type
                raise UserError(f"{file}: damaged ({error}); compile the corpus again") from None
            if missing := [token for token in _extra_tokens(directory) if backend.token_to_id(token) is None]:
                backend = _by_transformers(directory, f"it has no token {missing[0]!r}")
        cleans = settings.get("clean_up_tokenization_spaces", False)
        # transformers does not clean the text of BPE models without this second setting
        for_bpe = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        cleans = bool(cleans and (not isinstance(backend.model, models.BPE) or settings.get(for_bpe)))
        return cls(backend, cleans, frozenset(map(backend.token_to_id, _special_tokens(directory))))

    @property
    def size(self) -> int:
        """Number of tokens, including added ones; ids are smaller than it."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> set[int]:
        """Ids of all special tokens."""
        return {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special} | self.more_special

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, including special tokens."""
        text = str(self.backend.decode(list(ids), skip_special_tokens=False))
        for old, replacement in CLEANED if self.cleans else ():
            text = text.replace(old, replacement)
        return text

    @cached_property
    def _encoder(self) -> Any:
        """A copy of the tokenizer that encodes special tokens in a text as plain text, without truncation."""
        copy = copied(self.backend.to_str())
        if getattr(copy.model, "dropout", None):  # in a corpus of an earlier version
            copy.model.dropout = None
        return copy

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, without special tokens, and the characters of each: start and end in `text`."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        return list(encoding.ids), [(int(start), int(end)) for start, end in encoding.offsets]


def _by_transformers(directory: Path, reason: str) -> Any:
    """The `tokenizers.Tokenizer` that transformers loads from the files in `directory`."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(
            f"{directory / FILE}: {reason}, so decoding needs transformers; run: pip install 'wellread[train]'"
        ) from None
    from wellread.corpus.tokenizer import Tokenizer

    return Tokenizer.load(directory).backend.backend_tokenizer


def _extra_tokens(directory: Path) -> Iterator[str]:
    """Tokens that the files next to tokenizer.json name."""
    yield from _settings(directory / "added_tokens.json")
    for name in SPECIAL_TOKEN_FILES:
        yield from map(_text, _settings(directory / name).get("added_tokens_decoder", {}).values())
    yield from _special_tokens(directory)


def _special_tokens(directory: Path) -> Iterator[str]:
    """Special tokens that the files next to tokenizer.json name."""
    for name in SPECIAL_TOKEN_FILES:
        settings = _settings(directory / name)
        tokens = [value for key, value in settings.items() if key.endswith("_token") and not isinstance(value, bool)]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            extra = settings.get(key) or []
            tokens += extra.values() if isinstance(extra, dict) else extra
        yield from map(_text, filter(None, tokens))


def _text(token: str | dict[str, Any]) -> str:
    return str(token["content"]) if isinstance(token, dict) else token


def _settings(file: Path) -> dict[str, Any]:
    """Settings in a JSON file; empty when the file does not exist."""
    try:
        values: dict[str, Any] = json.loads(read_whole(file))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error})") from None
    return values
