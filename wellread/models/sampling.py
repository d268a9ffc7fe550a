"""Random and greedy choice of the next token, and the flags that control it; for both commands ``wellread sample``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    import argparse

    import torch


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

    @classmethod
    def of(cls, options: Any) -> Settings:
        """Settings from the flags of `add_flags`."""
        return cls(options.temperature, options.top_p, options.seed, options.tokens)


def add_flags(parser: argparse.ArgumentParser, temperature: float) -> None:
    """Give `parser` the flags of `Settings`; `temperature` is the default of its flag."""
    add = parser.add_argument
    add("--temperature", type=float, default=temperature, help="0 takes the most likely token each time.")
    add("--top_p", type=float, default=0.9, help="Draw from the most likely tokens with this total probability.")
    add("--seed", type=int, default=0, help="The same seed gives the same text.")
    add("--tokens", type=int, default=200, help="Maximum number of tokens to write.")


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
    scaled = (logits - logits.max()) / settings.temperature  # at most 0: a tiny temperature gives no infinity
    probabilities, order = torch.softmax(scaled, dim=0).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    nucleus = probabilities * (before < settings.top_p)
    return int(order[torch.multinomial(nucleus, 1, generator=generator)])
