"""``wellread sample``: generate text with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.models.load import load_model
from wellread.terminal import visible

if TYPE_CHECKING:
    import torch

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Decoded text of a character with missing last bytes."""


@dataclass(frozen=True)
class Settings:
    """Settings of sampling."""

    temperature: float = 1.0
    """Logits are divided by it; 0 means greedy decoding."""
    top_p: float = 0.9
    """Nucleus sampling: use only the most likely tokens with this total probability."""
    seed: int = 0
    tokens: int = 200
    """Maximum number of new tokens."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"--temperature {self.temperature}: must be at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below 2^63")
        if self.tokens < 1:
            raise UserError(f"--tokens {self.tokens}: must be at least 1")


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
    _check_length(len(prompt), settings.tokens, model.config.max_position_embeddings)
    shows = visible if sys.stdout.isatty() else str
    ends = {tokenizer.eos, *_start(tokenizer)}
    for part in pieces_of_text(tokenizer, prompt, continuation(model, prompt, settings, ends)):
        print(shows(part), end="", flush=sys.stdout.isatty())
    print()


def _start(tokenizer: Tokenizer) -> list[int]:
    """Tokens before a text: the BOS token, or without one, the EOS token of the previous text."""
    begin = tokenizer.backend.bos_token_id
    return [tokenizer.eos if begin is None else int(begin)]


def _check_length(prompt: int, tokens: int, positions: int) -> None:
    if prompt >= positions:
        raise UserError(f"the text has {prompt} tokens, but the model only {positions} positions; use a shorter text")
    if prompt + tokens > positions:
        raise UserError(
            f"--tokens {tokens}: the text has {prompt} tokens and the model only {positions} positions; "
            f"choose at most {positions - prompt}"
        )


def continuation(model: Any, prompt: list[int], settings: Settings, ends: set[int]) -> Iterator[int]:
    """Yield the tokens after `prompt` one by one, until one of `ends` (not yielded).

    Keys and values of earlier positions are cached, so each token needs a forward pass of only one position.
    """
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    cache, inputs = None, torch.tensor([prompt])
    for _ in range(settings.tokens):
        with torch.inference_mode():
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        token = choose(output.logits[0, -1].float(), settings, generator)
        if token in ends:
            return
        yield token
        inputs = torch.tensor([[token]])


def choose(logits: torch.Tensor, settings: Settings, generator: torch.Generator) -> int:
    """Choose the next token: the most likely one, or a random one with nucleus (top-p) sampling.

    Source: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1.

    Parameters
    ----------
    logits : (vocabulary,) float32
    """
    import torch

    if settings.temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / settings.temperature, dim=0).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    nucleus = probabilities * (before < settings.top_p)
    return int(order[torch.multinomial(nucleus, 1, generator=generator)])


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
