"""Loading a directory in Hugging Face layout with transformers; its errors become one-line messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    from torch import nn


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
    with _one_line(directory):
        model, loading_info = AutoModelForCausalLM.from_pretrained(directory, **settings, **options)
    _check_weights(directory, loading_info)
    result: nn.Module = model
    return result


def _check_weights(directory: Path, loading_info: dict[str, Any]) -> None:
    """Raise an error if weights do not match the model; transformers would initialize missing ones randomly."""
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


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def _and_more(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    """Convert errors that transformers raises for an invalid directory to a one-line UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
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

    with _one_line(directory):
        return AutoConfig.from_pretrained(directory, local_files_only=True)
