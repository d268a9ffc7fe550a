"""Load the files of a ``state/`` without executing what they contain.

torch's and DeepSpeed's files are pickles, and a pickle may name any function to call. torch's restricted unpickler
(``weights_only``) builds only tensors and plain values, and the classes that are named here. DeepSpeed asks for the
unrestricted one, so its files are loaded under torch's switch that overrides such calls.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from wellread.errors import UserError

SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable that restricts every call of torch.load, even those with ``weights_only=False``."""
OPPOSITE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variable that removes the restriction from calls without the argument; torch refuses both together."""
CLASSES = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""All classes in DeepSpeed's files that are not torch's: a number, a fixed scale, and a range of elements."""


def restricted(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which torch.load never executes what a file contains."""
    return {name: value for name, value in environment.items() if name != OPPOSITE} | {SWITCH: "1"}


@contextmanager
def restricted_loading(state: Path) -> Iterator[None]:
    """Restrict all calls of torch.load inside the block; convert the error of an unsafe file to one line.

    Raises
    ------
    UserError
        When a file of `state` contains anything except tensors, plain values and `CLASSES`.
    """
    import pickle

    import torch

    before = {name: os.environ.pop(name, None) for name in (SWITCH, OPPOSITE)}
    os.environ[SWITCH] = "1"
    try:
        with torch.serialization.safe_globals(allowed(_in_use(state))):
            yield
    except pickle.UnpicklingError as error:
        raise unsafe(state, str(error)) from None
    finally:
        del os.environ[SWITCH]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _in_use(state: Path) -> tuple[str, ...]:
    return CLASSES if any(state.glob("*/*.pt")) else ()  # without DeepSpeed's files it is not imported


def allowed(classes: tuple[str, ...] = CLASSES) -> list[Any]:
    """Import the classes that the restricted unpickler may build."""
    return [getattr(import_module(module), name) for module, _, name in (path.rpartition(".") for path in classes)]


def unsafe(state: Path, reason: str) -> UserError:
    """The error for a state that is not loaded; `reason` is torch's message or the output of a program."""
    name = re.search(r"GLOBAL (\S+)", reason)
    what = name[1] if name else "objects of another program"
    return UserError(
        f"{state}: contains {what}, which is not part of an optimizer state, so it is not loaded; "
        f"restore the checkpoint, or start a new run from its weights with --model {state.parent / 'model'}"
    )
