"""Fresh Llama models have the configuration and the distribution of initial weights of llama2.c."""

import dataclasses

import pytest

from wellread.errors import UserError
from wellread.models.load import initial
from wellread.models.registry import find


def test_the_configuration() -> None:
    config = initial(find("stories-260k"), 0, eos=2, bos=1).config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (64, 5, 172)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 8)
    assert (config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings) == (512, 512, True)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"], config.hidden_act) == (1e-5, 10_000, "silu")
    assert (config.attention_bias, config.mlp_bias, config.attention_dropout) == (False, False, 0)
    assert (config.bos_token_id, config.eos_token_id) == (1, [1, 2])
    assert initial(find("stories-260k"), 0, eos=0).config.eos_token_id == 0


def test_initial_weights() -> None:
    """Standard deviation 0.02, or 0.02 / sqrt(2 * 6) for projections to the residual stream; norms are ones."""
    spec = dataclasses.replace(find("stories-15m"), vocab=4096)
    model = initial(spec, 3, eos=2, bos=1).in_memory()
    parameters = dict(model.named_parameters())
    assert "lm_head.weight" not in parameters  # tied
    residual = [name for name in parameters if "o_proj" in name or "down_proj" in name]
    assert len(residual) == 2 * 6
    for name, weight in parameters.items():
        if "norm" in name:
            assert bool((weight == 1).all()), name
        else:
            expected = 0.02 / 12**0.5 if name in residual else 0.02
            # at least 82,944 weights: standard errors are 0.25 % of the deviation, and 0.0035 deviations for the mean
            assert weight.std().item() == pytest.approx(expected, rel=0.015), name
            assert abs(weight.mean().item()) < 0.02 * expected, name
    again = dict(initial(spec, 3, eos=2, bos=1).in_memory().named_parameters())
    assert all(bool((weight == again[name]).all()) for name, weight in parameters.items())
    other = dict(initial(spec, 4, eos=2, bos=1).in_memory().named_parameters())
    assert not bool((parameters["model.embed_tokens.weight"] == other["model.embed_tokens.weight"]).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "--model stories-260k: 8 heads do not divide the width 100"),
        ({"kv_heads": 3}, "--model stories-260k: 3 heads of keys and values do not divide 8 heads"),
        ({"width": 72}, "--model stories-260k: rotary embedding needs heads of even width, not 9"),
    ],
)
def test_invalid_numbers_of_heads(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        initial(dataclasses.replace(find("stories-260k"), **change), 0, eos=2)  # type: ignore[arg-type]
