"""config.json and generation_config.json of a model, read without transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.shapes import LONGEST_VALUE
from wellread.text_io import Parser, read_text, refuse_marked
from wellread.whole import unusable

CONFIG, GENERATION = "config.json", "generation_config.json"
REMEDIES = {
    "pad_token_id": "set it to null, since padding is known by length here",
    "eos_token_id": "set it to the id that its tokenizer has, or to null",
    "bos_token_id": "set it to the id that its tokenizer has, or to null",
}
"""Key with the id of a token -> what to do if it is wrong."""


def read_config(path: Path) -> dict[str, Any]:
    """Content of a JSON file of a model.

    Raises
    ------
    UserError
        When it is not a JSON object.
    """
    if problem := unusable(path):
        raise UserError(f"{path}: {problem}")
    text = read_text(path)
    refuse_marked(path)  # transformers reads the file again
    try:
        config = Parser().decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error).partition(';')[0]})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a JSON object; pass the {path.name} of a language model")
    return config


def check_tokens(where: str, config: Mapping[str, Any], vocab: int) -> None:
    """Check the ids of special tokens in the configuration of a model with `vocab` tokens.

    Some families build no embedding with a padding token outside the vocabulary. Others would generate without an end.

    Raises
    ------
    UserError
        When one is not in the vocabulary; names `where`, the key and its value.
    """
    for key, remedy in REMEDIES.items():
        value = config.get(key)
        if value is None:
            continue
        for token in value if key == "eos_token_id" and isinstance(value, list) and value else [value]:
            if type(token) is not int or token < 0:
                raise UserError(f"{where}: {key} {as_json(value)} is not the id of a token; {remedy}")
            if token >= vocab:
                raise UserError(f"{where}: {key} {as_json(value)} is outside its vocabulary of {vocab:,}; {remedy}")


def refuse_quantized(config: Mapping[str, Any], where: str) -> None:
    """Refuse a model whose files contain quantized weights: neither training nor merging could read them.

    ``--load_in_4bit`` quantizes plain weights, so it needs none of these.

    Raises
    ------
    UserError
        Names `where` and the method.
    """
    for key in ("quantization_config", "compression_config"):
        if value := config.get(key):
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            kind = str(method)[:LONGEST_VALUE] if method else f"by its {key}"
            raise UserError(
                f"{where}: its weights are quantized ({kind}); pass the model from before quantization, "
                "with --load_in_4bit and --lora.rank if it needs too much memory"
            )


def rope_limit(config: Mapping[str, Any], where: str = CONFIG) -> int | None:
    """Most tokens of a text at which its rotary embedding does not depend on other texts of its batch; None: no limit.

    With short and long factors (LongRoPE), transformers chooses one of them for a whole batch, by its longest text.
    With rope_type `dynamic` it does so beyond `max_position_embeddings`, which is the limit of the model anyway.

    Raises
    ------
    UserError
        When the number in `config` is not a whole number; names `where`.
    """
    outer, limits = config.get("original_max_position_embeddings"), list[int]()
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    entries = [scaling, *scaling.values()] if isinstance(scaling, Mapping) else []  # one, or one by kind of layer
    for entry in entries:
        kind = (entry.get("rope_type") or entry.get("type")) if isinstance(entry, Mapping) else None
        if kind is None or (kind != "longrope" and "long_factor" not in entry):
            continue
        value = outer if outer is not None else entry.get("original_max_position_embeddings")
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise UserError(
                f"{where}: original_max_position_embeddings {as_json(value)}: expected a whole number of at least 1; "
                "restore the model's own file"
            )
        limits.append(value)
    return min(limits, default=None)


def check_generation(directory: Path, vocab: int) -> None:
    """Check generation_config.json of a model with `vocab` tokens, if it has one.

    Raises
    ------
    UserError
        When it is not a JSON object, or a special token is not in the vocabulary.
    """
    path = directory / GENERATION
    if os.path.lexists(path):
        check_tokens(str(path), read_config(path), vocab)


def as_json(value: Any) -> str:
    """A value of a JSON file for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
