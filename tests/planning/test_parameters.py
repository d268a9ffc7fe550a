"""Parameter counts, compared with published numbers and with models on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
from support.known_models import PYTHIA, SMALL, small_config

from wellread.errors import UserError
from wellread.models import llama
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning.parameters import layout_of, lora_parameters, parameters, trained

CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "llama-7b": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
        },
        6_738_415_616,
    ),
    "llama-2-70b": (
        {
            "model_type": "llama",
            "hidden_size": 8192,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "intermediate_size": 28672,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
        68_976_648_192,
    ),
    "qwen2-0.5b": (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "vocab_size": 151936,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
        494_032_768,
    ),
    "gpt-j-6b": (
        {
            "model_type": "gptj",
            "n_embd": 4096,
            "n_layer": 28,
            "n_head": 16,
            "rotary_dim": 64,
            "vocab_size": 50400,
            "n_positions": 2048,
        },
        6_050_882_784,
    ),
    "gpt-neo-2.7b": (
        {
            "model_type": "gpt_neo",
            "hidden_size": 2560,
            "num_layers": 32,
            "num_heads": 20,
            "attention_types": [[["global", "local"], 16]],
            "vocab_size": 50257,
            "max_position_embeddings": 2048,
        },
        2_651_307_520,
    ),
    "mpt-7b": (
        {
            "model_type": "mpt",
            "d_model": 4096,
            "n_layers": 32,
            "n_heads": 32,
            "vocab_size": 50432,
            "max_seq_len": 2048,
        },
        6_649_286_656,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "vocab_size": 50257,
            "n_positions": 1024,
        },
        124_439_808,
    ),
}
"""Content of a config.json, and the published number of parameters."""


def spec_of(config: dict[str, Any]) -> ModelSpec:
    from wellread.models.registry import _from_config

    return _from_config(config, "test", "config.json")


def on_meta(config: dict[str, Any]) -> int:
    """Parameters of the real model class on the meta device."""
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = {key: value for key, value in config.items() if key != "model_type"}
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**settings))
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def config_of(spec: ModelSpec) -> dict[str, Any]:
    if spec.family == "llama":
        return llama.configuration(spec, bos=1, eos=2).to_diff_dict()  # type: ignore[no-any-return]
    return {
        "model_type": "gpt_neox",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.positions,
    }


def test_counts_of_pythia_are_the_published_ones() -> None:
    assert {name: parameters(find(name)).total for name in PYTHIA} == PYTHIA


def test_counts_of_llama2c_models() -> None:
    """stories260K.bin contains as many numbers, without the rotary tables; the other sizes match their names."""
    assert parameters(find("stories-260k")).total == 260_032
    assert parameters(find("stories-15m")).total == 15_191_712
    assert parameters(find("stories-42m")).total == 41_689_600
    assert parameters(find("stories-110m")).total == 109_529_856


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_of_other_families_are_the_published_ones(name: str) -> None:
    config, published = CONFIGS[name]
    assert parameters(spec_of(config)).total == published


@pytest.mark.parametrize("name", ["tiny", "stories-260k", "stories-15m", "pythia-14m", "pythia-160m", *CONFIGS])
def test_counts_equal_a_shallow_model_on_the_meta_device(name: str) -> None:
    config = CONFIGS[name][0] if name in CONFIGS else config_of(find(name))
    layers = {"num_hidden_layers", "n_layer", "num_layers", "n_layers"} & set(config)
    shallow = config | dict.fromkeys(layers, 2)
    if "attention_types" in config:
        shallow["attention_types"] = [[["global", "local"], 1]]
    assert parameters(spec_of(shallow)).total == on_meta(shallow)


def test_parts_of_a_count() -> None:
    model = parameters(find("pythia-12b"))
    assert model.layer == 3 * 5120 * 5120 + 5120**2 + 2 * 4 * 5120**2 + (3 + 1 + 4 + 1 + 4) * 5120
    assert model.largest == 50688 * 5120  # the embedding
    assert model.total == 36 * model.layer + model.outside
    assert sum(model.tensors) == model.total - 36 * 13 * 5120 - 2 * 5120  # without norms and biases
    assert model.products == 36 * 12 * 5120**2 + 50688 * 5120


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gptj", "gpt_neo", "mpt"])
def test_lora_parameters_equal_those_of_peft(family: str) -> None:
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        model = get_peft_model(AutoModelForCausalLM.from_config(small_config(family, 2)), LoraConfig(r=4))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(SMALL[family], 4, tuple(USUAL[family])) == trainable


def test_lora_on_every_matrix() -> None:
    assert lora_parameters(find("pythia-12b"), 8) == 36 * 8 * (4 * 5120 + 2 * 5120 + 5 * 5120 + 5 * 5120)


@pytest.mark.parametrize("family", SMALL)
def test_names_and_sizes_are_those_of_the_model(family: str) -> None:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = small_config(family, 2)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    spec = spec_of(config.to_dict() | {"model_type": family})
    assert layout_of(spec).sizes(spec) == {name: p.numel() for name, p in model.named_parameters()}


def test_frozen_parameters_are_not_trained() -> None:
    spec, every = find("pythia-70m"), parameters(find("pythia-70m"))
    assert trained(spec).elements == every.total
    layers = trained(spec, freeze="*.layers.*")
    assert (layers.elements, layers.saved) == (every.outside, every.total)
    assert layers.tensors == (50304 * 512, 512, 512, 50304 * 512)
    some = trained(spec, freeze="*.layers.[0-2].*, *.embed_in.*,*.layers.0.mlp.*")
    assert some.elements == every.total - 3 * every.layer - 50304 * 512


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("layers.0.*", r"--freeze layers\.0\.\*: matches no parameter; the parameters are gpt_neox\.embed_in\.weight"),
        ("*.layers.*,*.embd_in.*", r"--freeze \*\.embd_in\.\*: matches no parameter"),
        ("*.weight,*.bias", r"--freeze \*\.weight,\*\.bias: freezes all parameters"),
    ],
)
def test_patterns_are_refused_before_a_rank_starts(patterns: str, message: str) -> None:
    """A pattern matches complete names, and something."""
    with pytest.raises(UserError, match=message):
        trained(find("pythia-70m"), freeze=patterns)


def test_a_head_that_only_the_files_have_may_be_frozen() -> None:
    tied = find("stories-15m")
    assert "lm_head.weight" not in layout_of(tied).sizes(tied)
    assert trained(tied, freeze="lm_head.*").elements == parameters(tied).total
