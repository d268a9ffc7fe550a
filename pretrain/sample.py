"""``wellread sample``: generate text with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.escapes import Own, prose
from wellread.models.continuations import positions
from wellread.models.load import load_model
from wellread.models.sampling import Settings, continuation

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Decoded text of a character with missing last bytes."""


def sample(directory: Path, text: str, settings: Settings) -> None:
    """Print `text` and its continuation by a model; on a terminal, token by token and without control characters.

    Raises
    ------
    UserError
        When there is no model or tokenizer, or the text would be longer than the model's positions.
    """
    tokenizer = Tokenizer.load(directory)
    prompt = tokenizer.prompts([text])[0] if text else _start(tokenizer)
    model: Any = load_model(directory)
    if tokenizer.size > model.config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {tokenizer.size:,} tokens, but the model {model.config.vocab_size:,}; "
            "use the tokenizer of this model"
        )
    if (limit := positions(model.config)) is not None:
        _check_length(len(prompt), settings.tokens, limit)
    shows = prose if sys.stdout.isatty() else Own
    ends = {tokenizer.eos, *_start(tokenizer)}
    for part in pieces_of_text(tokenizer, prompt, continuation(model, prompt, settings, ends)):
        print(shows(part), end="", flush=sys.stdout.isatty())
    print()


def _start(tokenizer: Tokenizer) -> list[int]:
    """Tokens before a text: the BOS token, or without one, the EOS token of the previous text."""
    begin = tokenizer.backend.bos_token_id
    return [tokenizer.eos if begin is None else int(begin)]


def _check_length(prompt: int, tokens: int, positions: int) -> None:
    """Check that all tokens except the last, which is only written, have a position."""
    if prompt > positions:
        raise UserError(f"the text has {prompt} tokens, but the model only {positions} positions; use a shorter text")
    if prompt + tokens - 1 > positions:
        raise UserError(
            f"--tokens {tokens}: the text has {prompt} tokens and the model only {positions} positions; "
            f"choose at most {positions - prompt + 1}"
        )


def pieces_of_text(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Yield the text of the prompt, then the new text of each token; incomplete characters are held back."""
    ids = list(prompt)
    text = _text(tokenizer, ids)
    yield text
    for token in tokens:
        ids.append(token)
        now = _text(tokenizer, ids)
        if not now.endswith(UNFINISHED):
            yield now[len(text) :]
            text = now
    yield _text(tokenizer, ids)[len(text) :]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.backend.decode(ids, skip_special_tokens=True))
