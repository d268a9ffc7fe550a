"""Continuations with transformers' cache: the greedy texts of `greedy` in every family; random ones."""

from functools import partial
from itertools import takewhile
from typing import Any

import pytest
import torch
from support.small_models import LIKE_LLAMA, SIZES, VOCAB, tiny
from torch import nn

from wellread.models.continuations import continuations, positions
from wellread.models.families import FAMILIES
from wellread.models.generate import greedy
from wellread.models.loss import next_logits

PROMPTS = [[5], list(range(20, 37)), [7, 8, 9, 10], [3, 1, 4, 1, 5, 9, 2, 6]]
NEW = 24


def gap_of_logits(model: Any, text: list[int], one: int, other: int) -> float:
    """Difference of the logits of two tokens after `text`."""
    logits = model(torch.tensor([text])).logits[0, -1]
    return float((logits[one] - logits[other]).abs())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_of_unequal_prompts_are_those_of_greedy(family: str) -> None:
    model = tiny(family)
    written = continuations(model, PROMPTS, new_tokens=NEW, end=VOCAB - 1)
    with torch.inference_mode():
        expected = greedy(partial(next_logits, model), PROMPTS, new_tokens=NEW, longest=64, end=VOCAB - 1)
        for prompt, text, other in zip(PROMPTS, written, expected, strict=True):
            if text != other:  # rounding decides between two tokens that are equally likely
                same = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))]
                pair = text[len(same)], other[len(same)]
                assert gap_of_logits(model, prompt + same, *pair) < 1e-4
    assert len({tuple(row) for row in written}) > 1
    assert max(map(len, written)) == NEW


def test_every_family_has_a_tiny_model() -> None:
    assert {*SIZES, *LIKE_LLAMA} == set(FAMILIES)


def test_random_texts_depend_only_on_the_seed() -> None:
    model = tiny("llama")
    before = torch.get_rng_state()
    first = continuations(model, PROMPTS, new_tokens=NEW, end=0, seed=3, top_p=0.9)
    torch.manual_seed(99)
    assert continuations(model, PROMPTS, new_tokens=NEW, end=0, seed=3, top_p=0.9) == first
    assert continuations(model, PROMPTS, new_tokens=NEW, end=0, seed=4, top_p=0.9) != first
    torch.set_rng_state(before)
    continuations(model, PROMPTS, new_tokens=1, end=0, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_random_tokens_have_the_probabilities_of_the_nucleus() -> None:
    """4,000 first tokens: each frequency within 5 standard errors, which fails by chance once in 10,000."""
    model: nn.Module = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
        p = model(torch.tensor([[5]])).logits[0, -1].double().softmax(-1)
    ordered = p.sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.5).sum()) + 1
    nucleus = ordered.indices[:size]
    draws = continuations(model, [[5]] * 4000, new_tokens=1, end=0, seed=0, top_p=0.5)
    counts = torch.bincount(torch.tensor(draws)[:, 0], minlength=VOCAB)
    assert counts[nucleus].sum() == 4000
    q = p[nucleus] / p[nucleus].sum()
    assert ((counts[nucleus] / 4000 - q).abs() <= 5 * (q * (1 - q) / 4000).sqrt() + 1e-12).all()


def test_a_text_ends_after_its_end_and_settings_of_the_model_are_not_used() -> None:
    model: Any = tiny("gpt2")
    written = continuations(model, PROMPTS, new_tokens=NEW, end=0)
    end = written[1][3]
    shorter = continuations(model, PROMPTS, new_tokens=NEW, end=end)
    assert shorter[1] == written[1][: written[1].index(end) + 1]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.num_beams = 3
    assert continuations(model, PROMPTS, new_tokens=NEW, end=0) == written


def test_positions_are_read_from_the_configuration() -> None:
    for family in ("gpt2", "mpt", "gptj"):
        model: Any = tiny(family)
        assert positions(model.config) == 64
    assert positions(object()) is None
