"""A CPU as if it were a device of its own: which tensors are on it, and where the host waits for it.

On a GPU the host waits where it needs a value or a shape that the device computes. On a CPU nothing shows that. Here
batches are copied to a memory that counts as the device's, so is every tensor that follows from it, and only
`wellread.corpus.batch.fetched` copies back without a wait.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VALUES = {"_local_scalar_dense", "is_nonzero", "equal", "allclose"}
"""Operations with a result on the host."""
SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
"""Operations whose result has a shape that depends on values. Of repeat_interleave, only the form with a tensor."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""With a boolean index, they wait for its number of entries."""
READING = ("numpy", "tolist", "cpu", "__array__")
"""Methods of a tensor that read its values."""


def on_device(tensor: torch.Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "on_device", False)


def put(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the device."""
    copy = tensor.clone()
    copy.untyped_storage().on_device = True  # type: ignore[attr-defined]
    return copy


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host."""
    with torch.utils._python_dispatch._disable_current_modes():
        return tensor.detach().clone()


class Waits(TorchDispatchMode):
    """Notes each operation for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        masked = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        repeated = name == "repeat_interleave" and isinstance(args[0 if len(args) == 1 else 1], torch.Tensor)
        if any(map(on_device, inputs)):
            if name in VALUES or name in SHAPES or masked or repeated:
                self.note(name)
            written = [args[k] for k, of in enumerate(func._schema.arguments[: len(args)]) if of.is_write]
            for leaf in tree_leaves((result, written)):
                if isinstance(leaf, torch.Tensor):
                    leaf.untyped_storage().on_device = True  # type: ignore[attr-defined]
        return result

    def note(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "_python_dispatch" not in f[0]]
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
        self.places.append(f"{name}: {' < '.join(where[:5])}")


@contextmanager
def waits(patch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Note the waits of what runs inside, for the device to which batches are copied."""
    watch = Waits()

    def reading(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if on_device(tensor):
                watch.note(name)
            return method(tensor, *args, **kwargs)

        return read

    with patch.context() as changes, watch:
        for name in READING:
            changes.setattr(torch.Tensor, name, reading(name, getattr(torch.Tensor, name)))
        yield watch


def use(patch: pytest.MonkeyPatch) -> None:
    """Let training copy batches to the device and back."""
    from wellread.corpus import batch
    from wellread.models import varlen
    from wellread.train import ahead, queued

    for module in (batch, ahead):
        patch.setattr(module, "copied_to", lambda tensor, device: put(tensor))
    for module in (batch, queued):
        patch.setattr(module, "fetched", fetched)
    by_segments = varlen._on_cpu  # the kernel of a GPU reads the bounds of segments there
    patch.setattr(varlen, "_on_cpu", lambda q, k, v, starts, *more: by_segments(q, k, v, fetched(starts), *more))
