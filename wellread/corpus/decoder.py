"""Text of a corpus's tokens, by its own tokenizer.json: what reading a run needs, without torch and transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.errors import UserError

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
FURTHER = (SETTINGS, "special_tokens_map.json")
"""Files that may name tokens which tokenizer.json lacks; added_tokens.json, too."""
CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What ``clean_up_tokenization_spaces`` replaces, in this order: transformers, clean_up_tokenization."""


@dataclass(frozen=True)
class Decoder:
    """Turns token ids into text, exactly as transformers does with special tokens kept."""

    backend: Any
    """The `tokenizers.Tokenizer`."""
    cleans: bool = False
    """Whether blanks before punctuation are removed (``clean_up_tokenization_spaces``)."""

    @classmethod
    def load(cls, directory: Path) -> Decoder:
        """Load the tokenizer that lies in `directory`.

        One whose tokenizer.json is missing, or lacks tokens that the files next to it name, is put together by
        transformers.

        Raises
        ------
        UserError
            When there is none, it is damaged, or it needs transformers and that is not installed.
        """
        from tokenizers import Tokenizer, models

        file, settings = directory / FILE, _settings(directory / SETTINGS)
        if not file.is_file():
            backend = _by_transformers(directory, "it is missing")
        else:
            try:
                backend = Tokenizer.from_file(str(file))
            except Exception as error:  # the package raises nothing more special
                raise UserError(f"{file}: damaged ({error}); compile the corpus again") from None
            if lacking := [token for token in _named(directory) if backend.token_to_id(token) is None]:
                backend = _by_transformers(directory, f"it lacks the token {lacking[0]!r}")
        wanted = settings.get("clean_up_tokenization_spaces", False)
        # transformers cleans no BPE's text, unless told so at length
        own = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        return cls(backend, bool(wanted and (not isinstance(backend.model, models.BPE) or settings.get(own))))

    @property
    def size(self) -> int:
        """Number of tokens, added ones included; ids lie below it."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens included."""
        text = str(self.backend.decode(list(ids), skip_special_tokens=False))
        for found, replacement in CLEANED if self.cleans else ():
            text = text.replace(found, replacement)
        return text


def _by_transformers(directory: Path, reason: str) -> Any:
    """The `tokenizers.Tokenizer` that transformers makes of the files in `directory`."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(
            f"{directory / FILE}: {reason}, so its text needs transformers; run: pip install 'wellread[train]'"
        ) from None
    from wellread.corpus.tokenizer import Tokenizer

    return Tokenizer.load(directory).backend.backend_tokenizer


def _named(directory: Path) -> Iterator[str]:
    """Tokens that the files next to tokenizer.json name."""
    yield from _settings(directory / "added_tokens.json")
    for name in FURTHER:
        settings = _settings(directory / name)
        added = [*settings.get("added_tokens_decoder", {}).values()]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            further = settings.get(key) or []
            added += further.values() if isinstance(further, dict) else further
        added += [value for key, value in settings.items() if key.endswith("_token") and not isinstance(value, bool)]
        for token in filter(None, added):
            yield token["content"] if isinstance(token, dict) else token


def _settings(file: Path) -> dict[str, Any]:
    """A JSON file of settings; empty where there is none."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error})") from None
    return values
