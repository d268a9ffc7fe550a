"""Recognize errors of a rank that mean out of memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from wellread.planning import host_memory
from wellread.planning.fallback import Shortage

ON_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
ON_HOST = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "std::bad_alloc")
"""Parts of error messages that mean out of host memory."""
PINNED, LAST_FRAME = "pin_memory", 4
"""If the last lines of a CUDA error's traceback contain this, pinned host memory ran out, not GPU memory."""


def shown_by(error: BaseException, trace: str) -> Shortage | None:
    """Which memory ran out according to an error; None for any other error.

    Parameters
    ----------
    trace : str
        The error's traceback, as text.
    """
    for cause in _causes(error):
        text = " ".join(str(cause).split())
        on_gpu = type(cause).__name__ == "OutOfMemoryError" or any(words in text for words in ON_GPU)
        if on_gpu and PINNED not in "".join(trace.splitlines()[-LAST_FRAME:]):
            return Shortage(place="gpu", evidence=f"CUDA: {text[:200]}", limit=_gpu_limit())
        full = isinstance(cause, OSError) and cause.errno == errno.ENOMEM
        if on_gpu or full or isinstance(cause, MemoryError) or any(words in text for words in ON_HOST):
            evidence = f"{type(cause).__name__}: {text[:200]}"
            return Shortage(place="host", evidence=evidence, limit=host_memory.total())
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _gpu_limit() -> int | None:
    """Bytes of its GPU that this rank can use: all except those that other processes use."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())
