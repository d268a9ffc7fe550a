"""The true continuation of a sample: its first run of target tokens, which follows a prompt or the start of a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_run(targets: NDArray[np.bool_]) -> tuple[int, int]:
    """First target token of a sample, and the number of targets that follow each other from there; (0, 0) without one.

    Parameters
    ----------
    targets : (length,)
        Loss mask.
    """
    first = int(targets.argmax()) if targets.any() else 0
    return first, int((~np.append(targets[first:], False)).argmax())
