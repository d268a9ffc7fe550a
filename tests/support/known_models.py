"""Models whose sizes are known: published counts, and one small model per family."""

from __future__ import annotations

from typing import Any

from wellread.models.families import FAMILIES
from wellread.models.spec import ModelSpec

PYTHIA = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
}
"""As published (github.com/EleutherAI/pythia, README)."""


SMALL = {
    family: ModelSpec(
        name=family, family=family, layers=2, width=64, heads=4, intermediate=256, vocab=512, positions=128
    )
    for family in FAMILIES
}


def small_config(family: str, layers: int) -> Any:
    """What transformers needs to build `SMALL`."""
    from transformers import CONFIG_MAPPING

    shape = {"hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 256}
    window = {"vocab_size": 512, "max_position_embeddings": 128}
    gpt2 = {"n_embd": 64, "n_layer": layers, "n_head": 4, "n_positions": 128, "vocab_size": 512}
    no_dropout: dict[str, Any] = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    settings: dict[str, dict[str, Any]] = {
        "gptj": gpt2 | no_dropout | ends | {"rotary_dim": 4},
        "gpt2": gpt2 | no_dropout | ends,
        "gpt_neo": {k: v for k, v in shape.items() if k == "hidden_size" or k == "intermediate_size"}
        | window
        | ends
        | {"num_layers": layers, "num_heads": 4, "attention_types": [[["global"], layers]]}
        | {"attention_dropout": 0, "resid_dropout": 0, "embed_dropout": 0},
        "mpt": {"d_model": 64, "n_layers": layers, "n_heads": 4, "vocab_size": 512, "max_seq_len": 128},
    }
    return CONFIG_MAPPING[family](**settings.get(family, shape | window))
