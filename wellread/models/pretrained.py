"""Loading a directory in Hugging Face layout with transformers; its errors become one-line messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.models.configs import CONFIG, check_tokens, refuse_quantized
from wellread.text_io import FOREIGN_CODE

if TYPE_CHECKING:
    from torch import nn

IMPLEMENTATIONS = {"attn": ("sdpa", "eager", "flex_attention"), "experts": ("grouped_mm", "batched_mm", "eager")}
"""Part of a model -> its implementations that torch itself can compute; the first is the usual one."""
FLASH = {
    "flash_attention_2": ("is_flash_attn_2_available", "flash-attn"),
    "flash_attention_3": ("is_flash_attn_3_available", "flash-attn-3"),
    "flash_attention_4": ("is_flash_attn_4_available", "flash-attn-4"),
}
"""Attention -> transformers' function that says whether its package is usable here, and the name of this package."""


def model_in(directory: Path, dtype: Any, **options: Any) -> nn.Module:
    """Load the model in a directory, with weights in a torch dtype.

    Parameters
    ----------
    **options
        Other arguments of `from_pretrained`: quantization, or devices of the layers.

    Raises
    ------
    UserError
        When it cannot be loaded, or its weights do not match its config.json.
    """
    from transformers import AutoModelForCausalLM

    _hide_bars()
    settings = {"dtype": dtype, "local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    settings["use_safetensors"] = True
    with one_line(directory):
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=False, **settings, **options
        )
    loading_info["unexpected_keys"] = without_computed(model, loading_info["unexpected_keys"])
    _check_weights(directory, loading_info)
    result: nn.Module = model
    return result


def _check_weights(directory: Path, loading_info: dict[str, Any]) -> None:
    """Raise an error if weights do not match the model; transformers would initialize missing ones randomly.

    It would also drop those that the model has no place for.
    """
    missing, wrong = sorted(loading_info["missing_keys"]), sorted(loading_info["mismatched_keys"])
    if wrong:
        name, stored, expected = wrong[0]
        raise UserError(
            f"{directory}: {name} is {_shape(stored)} in its files but {_shape(expected)} in its config.json"
            f"{_and_more(wrong)}; use the config.json of these weights"
        )
    if missing:
        unexpected = loading_info["unexpected_keys"]
        other = f" (they contain {sorted(unexpected)[0]})" if unexpected else ""
        raise UserError(
            f"{directory}: its files do not contain {missing[0]}{_and_more(missing)}{other}; "
            "use the config.json of these weights"
        )
    refuse_unused(directory, loading_info["unexpected_keys"])


def without_computed(model: Any, keys: Iterable[str]) -> list[str]:
    """Keys of tensors in files, except masks and the like that the model computes itself: old files contain them."""
    computed = {name for name, _ in model.named_buffers()}
    info = SimpleNamespace(missing_keys=set(), unexpected_keys={key for key in keys if key not in computed})
    model._adjust_missing_and_unexpected_keys(info)  # transformers' own exceptions, by family
    return sorted(key for key in info.unexpected_keys if not key.endswith(".masked_bias"))  # a constant, -1e9


def refuse_unused(directory: Path, names: Iterable[str]) -> None:
    """Raise an error if files contain weights that the model has no place for; `names` are theirs in the files."""
    unused = sorted(names)
    if unused:
        count = f"{len(unused)} tensors" if len(unused) > 1 else "a tensor"
        first = f", the first {unused[0]}" if len(unused) > 1 else f", {unused[0]}"
        raise UserError(
            f"{directory}: its files contain {count} that its config.json has no place for{first}; "
            "use the config.json of these weights, or remove the tensors"
        )


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _and_more(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def one_line(directory: Path) -> Iterator[None]:
    """Convert errors that transformers raises for an invalid directory to a one-line UserError.

    Whatever a wrong value in config.json causes: a TypeError, an AssertionError, a ZeroDivisionError of a layer.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise
        first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = f"{first} {more[0]}" if more and first.endswith(":") else first
        reason = FOREIGN_CODE if "custom code" in reason else reason
        raise UserError(f"{directory}: the model cannot be loaded ({reason})") from None


def _hide_bars() -> None:
    """Disable transformers' progress bars, which would appear between our messages."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def configuration_in(directory: Path) -> Any:
    """The transformers configuration of the model in a directory.

    Raises
    ------
    UserError
        When it cannot be read.
    """
    from transformers import AutoConfig

    with one_line(directory):
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        words = config.vocab_size
    _refuse_kernels(directory, config)
    refuse_quantized(vars(config), str(directory / CONFIG))
    check_tokens(str(directory / CONFIG), {"pad_token_id": getattr(config, "pad_token_id", None)}, words)
    return config


def _refuse_kernels(directory: Path, config: Any) -> None:
    """Refuse a config.json that names code which is not here: transformers would download and execute it."""
    file = directory / CONFIG
    for part, implementations in IMPLEMENTATIONS.items():
        value = getattr(config, f"_{part}_implementation", None)
        for name in value.values() if isinstance(value, dict) else [value]:
            if name is not None and name not in implementations:
                _refuse_implementation(file, part, str(name))


def _refuse_implementation(file: Path, part: str, name: str) -> None:
    """Refuse what torch itself cannot compute, except flash attention whose package is usable here."""
    from transformers.utils import import_utils

    implementations = IMPLEMENTATIONS[part]
    instead = f"remove this setting, or write {implementations[0]} instead"
    if "/" in name:
        raise UserError(f"{file}: names {name}, {FOREIGN_CODE}; {instead}")
    if part != "attn" or name not in FLASH:
        raise UserError(f"{file}: {part}_implementation {name}: unknown; choose {', '.join(implementations)}")
    is_usable, package = FLASH[name]
    if not getattr(import_utils, is_usable)():  # transformers would download it, if it has the package kernels
        raise UserError(f"{file}: {name} needs a GPU and the package {package}, one of which is missing; {instead}")
