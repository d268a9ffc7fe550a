"""Greedy decoding gives the results of transformers in all families, for single prompts and for batches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    PretrainedConfig,
)

from wellread.models.generate import greedy
from wellread.models.loss import next_logits

VOCAB, NEW = 97, 12
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ),
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=64,
    ),
    "gptj": lambda: GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=64),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64,
    ),
    "mpt": lambda: MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=2, max_seq_len=64),
}  # fmt: skip


def model_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # large weights, so that probabilities of tokens are clearly different
    return model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_batches_give_the_results_of_single_prompts_and_of_transformers(family: str) -> None:
    model = model_of(family)
    prompts = [[5], list(range(20, 37)), [7, 8, 9, 10]]
    before = torch.get_rng_state()
    with torch.inference_mode():
        continuations = partial(greedy, partial(next_logits, model), new_tokens=NEW, longest=64, end=None)
        together = continuations(prompts)
        assert together == [continuations([prompt])[0] for prompt in prompts]
        for prompt, result in zip(prompts, together, strict=True):
            ids = torch.tensor([prompt])
            settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
            expected = model.generate(ids, max_new_tokens=NEW, eos_token_id=None, **settings)
            assert result == expected[0, len(prompt) :].tolist()
    assert len({tuple(row) for row in together}) == 3
    assert torch.equal(before, torch.get_rng_state())


def counting(calls: list[int]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A model that predicts the last token plus 1, modulo 10."""

    def logits(tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        calls.append(tokens.shape[1])
        return torch.nn.functional.one_hot((tokens[last] + 1) % 10, 10).float()

    return logits


def test_texts_end_with_the_end_token_or_at_the_limit_and_the_number_of_passes_is_fixed() -> None:
    calls: list[int] = []
    results = greedy(counting(calls), [[1, 7], [3], [1, 2, 3, 4, 5]], new_tokens=6, longest=6, end=0)
    assert results == [[8, 9, 0], [4, 5, 6, 7, 8], [6]]
    assert calls == [6] * 6
    assert greedy(counting(calls), [[1] * 6], new_tokens=6, longest=6, end=0) == [[]]
    assert len(calls) == 12


def test_passes_have_few_widths() -> None:
    """On a CPU each new width costs memory and time, because kernels are compiled for it."""
    calls: list[int] = []
    greedy(counting(calls), [[1], [1] * 60], new_tokens=80, longest=150, end=None)
    assert calls == [64] * 5 + [128] * 64 + [150] * 11
