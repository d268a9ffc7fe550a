"""Recognize errors of a rank that mean out of memory."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from wellread.planning import host_memory
from wellread.planning.fallback import Shortage

ON_GPU = re.compile(
    r"(?:CUDA|Cuda|cuda|HIP|Hip|hip)\b.{0,400}out of memory"  # torch, the driver, NCCL, Triton
    r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_(?:\w+_)?ALLOC\w*_FAILED"
)
"""Messages that mean out of GPU memory, of torch and of the libraries below it."""
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
        on_gpu = type(cause).__name__ == "OutOfMemoryError" or ON_GPU.search(text) is not None
        if on_gpu and PINNED not in "".join(trace.splitlines()[-LAST_FRAME:]):
            return Shortage(place="gpu", evidence=f"CUDA: {_telling(cause)[:200]}", limit=_gpu_limit())
        full = isinstance(cause, OSError) and cause.errno == errno.ENOMEM
        if on_gpu or full or isinstance(cause, MemoryError) or any(words in text for words in ON_HOST):
            evidence = f"{type(cause).__name__}: {text[:200]}"
            return Shortage(place="host", evidence=evidence, limit=host_memory.total())
    return None


def _telling(cause: BaseException) -> str:
    """The line of an error that says what ran out; torch adds lines about debugging."""
    lines = [" ".join(line.split()) for line in str(cause).splitlines() if line.strip()]
    return next((line for line in lines if ON_GPU.search(line)), lines[0] if lines else type(cause).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _gpu_limit() -> int | None:
    """Bytes of its GPU that this rank can use: all except those that other processes use; None when unknown.

    On a full GPU, or after an error of CUDA, even the question fails.
    """
    import torch

    try:
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved())
    except (RuntimeError, AssertionError):  # AssertionError: torch is built for CPUs
        return None
