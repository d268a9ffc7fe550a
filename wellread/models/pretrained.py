"""A directory in Hugging Face layout, read by transformers: what it cannot read becomes one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def model_in(directory: Path, dtype: Any, **spread: Any) -> nn.Module:
    """The model that a directory holds, its weights in a torch dtype.

    Parameters
    ----------
    **spread
        What else `from_pretrained` is told: quantization, or where the layers go.

    Raises
    ------
    UserError
        When it cannot be loaded, or its files and its config.json do not belong together.
    """
    from transformers import AutoModelForCausalLM

    _hide_bars()
    settings = {"dtype": dtype, "local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _one_line(directory):
        model, found = AutoModelForCausalLM.from_pretrained(directory, **settings, **spread)
    _refuse_gaps(directory, found)
    whole: nn.Module = model
    return whole


def _refuse_gaps(directory: Path, found: dict[str, Any]) -> None:
    """Refuse weights that are not the model's: transformers draws at random what it does not find."""
    missing, wrong = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    if wrong:
        name, there, wanted = wrong[0]
        raise UserError(
            f"{directory}: {name} is {_shape(there)} in its files and {_shape(wanted)} by its config.json"
            f"{_others(wrong)}; they do not belong together"
        )
    if missing:
        other = f" (they hold {sorted(found['unexpected_keys'])[0]})" if found["unexpected_keys"] else ""
        raise UserError(
            f"{directory}: its files lack {missing[0]}{_others(missing)}{other}; "
            "they are not the weights of its config.json"
        )


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _others(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    """Turn what transformers raises for an unusable directory into our one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{directory}: the model cannot be loaded ({reason})") from None


def _hide_bars() -> None:
    """Transformers' own bars: one per load or save between our own lines helps nobody."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def configuration_in(directory: Path) -> Any:
    """The transformers configuration of the model that a directory holds.

    Raises
    ------
    UserError
        When it cannot be read.
    """
    from transformers import AutoConfig

    with _one_line(directory):
        return AutoConfig.from_pretrained(directory, local_files_only=True)
