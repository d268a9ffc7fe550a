"""Converting checkpoints of llama2.c (.bin: legacy v0, v1, int8 v2) to model directories in Hugging Face layout.

Formats: checkpoint_init_weights in run.c and memory_map_weights in runq.c of llama2.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wellread.errors import UserError
from wellread.models import llama, tensors
from wellread.models.spec import ModelSpec, check_heads

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
"""Numbers in a header, with their names in llama2.c."""
LARGEST = 1 << 24
"""Largest valid number in a header."""


@dataclass(frozen=True)
class Header:
    """Content of a checkpoint's header."""

    version: int
    spec: ModelSpec
    group: int = 0
    """Number of weights that share one scale, for int8."""

    @property
    def start(self) -> int:
        """Bytes before the first tensor."""
        return 256 if self.version else 28


@dataclass(frozen=True)
class Place:
    """Position of a tensor in the file."""

    offset: int
    shape: tuple[int, ...]
    quantized: bool

    def size(self, group: int) -> int:
        """Size in bytes, with `group` weights per scale."""
        count = int(np.prod(self.shape))
        return count + 4 * (count // group) if self.quantized else 4 * count


@dataclass(frozen=True)
class Llama2cFile:
    """An open checkpoint of llama2.c; tensors are read on request."""

    path: Path
    header: Header
    places: dict[str, Place]
    """Name of the tensor in transformers -> its position."""

    @classmethod
    def open(cls, path: Path) -> Llama2cFile:
        """Read the header, and check the size of the file.

        Raises
        ------
        UserError
            When the header is invalid, the size does not match, or the rotary tables do not have base 10,000.
        """
        header = _header(path)
        places = _places(header)
        last = next(reversed(places.values()))
        expected, size = last.offset + last.size(header.group), path.stat().st_size
        if expected != size:
            raise UserError(f"{path}: has {size:,} bytes, but its header needs {expected:,}; download it again")
        checkpoint = cls(path, header, places)
        if header.version == 0:
            checkpoint._check_rotary()
        return checkpoint

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor in fp32, with queries and keys in the order of Hugging Face."""
        place, group = self.places[name], self.header.group
        data = np.fromfile(self.path, np.uint8, place.size(group), offset=place.offset)
        if place.quantized:
            count = int(np.prod(place.shape))
            scales = data[count:].view("<f4")
            values = (data[:count].view(np.int8).reshape(-1, group) * scales[:, None]).astype(np.float32)
        else:
            values = data.view("<f4")
        return self._halved(name, values.reshape(place.shape))

    def _halved(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reorder queries and keys: llama2.c rotates pairs of neighboring rows, Hugging Face rows half a head apart."""
        spec = self.header.spec
        heads = spec.heads if "q_proj" in name else spec.kv_heads if "k_proj" in name else None
        if heads is None:
            return values
        rows, columns = values.shape
        return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    def _check_rotary(self) -> None:
        """Check that the rotary tables have base 10,000, because the configuration always has this base."""
        positions, half = self.places["cos"].shape
        angles = np.outer(np.arange(positions), llama.THETA ** (-np.arange(half) / half))
        for name, expected in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            if not np.allclose(self.read(name), expected, rtol=0, atol=1e-6 * (1000 + positions)):
                raise UserError(
                    f"{self.path}: its rotary tables do not have base {llama.THETA:,.0f}, the only one supported"
                )


def _header(path: Path) -> Header:
    with open(path, "rb") as file:
        data = file.read(256)
    if data[:4] != b"24ka":  # the number 0x616b3432
        return _checked(path, 0, data, 0)
    (version,) = struct.unpack_from("<i", data.ljust(8, b"\0"), 4)
    if version not in (1, 2):
        raise UserError(f"{path}: version {version} of llama2.c's format; only 0, 1 and 2 (int8) are supported")
    return _checked(path, version, data, 8)


def _checked(path: Path, version: int, data: bytes, start: int) -> Header:
    header_bytes = 256 if version else 28
    if len(data) < header_bytes:
        raise UserError(f"{path}: has {len(data)} bytes, less than a header; download it again")
    numbers = dict(zip(NUMBERS, struct.unpack_from("<7i", data, start), strict=True))
    tied, group = numbers["vocab_size"] > 0, 0
    if version:
        tied = bool(data[36])
    else:
        numbers["vocab_size"] = abs(numbers["vocab_size"])
    for name, number in numbers.items():
        if not 0 < number <= LARGEST:
            raise UserError(f"{path}: its header has {name} {number}; this is not a checkpoint of llama2.c")
    dim, hidden, layers, heads, kv_heads, vocab, positions = numbers.values()
    check_heads(str(path), dim, heads, kv_heads)
    if version == 2:
        (group,) = struct.unpack_from("<i", data, 37)
        if group < 1 or any(size % group for size in (vocab * dim, dim * dim // heads * kv_heads, dim * hidden)):
            raise UserError(
                f"{path}: its header has groups of {group}, which do not divide its tensors; download it again"
            )
    spec = ModelSpec(
        name=path.name, family="llama", layers=layers, width=dim, heads=heads, kv_heads=kv_heads,
        intermediate=hidden, vocab=vocab, positions=positions, tied=tied,
    )  # fmt: skip
    return Header(version, spec, group)


def _places(header: Header) -> dict[str, Place]:
    """Position of each tensor, in the order of the file."""
    places: dict[str, Place] = {}
    offset = header.start
    for name, shape in _order(header):
        places[name] = Place(offset, shape, header.version == 2 and len(shape) == 2)
        offset += places[name].size(header.group)
    return places


def _order(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order of the file."""
    spec = header.spec
    width, inner = spec.width, spec.intermediate
    keys = width // spec.heads * (spec.kv_heads or spec.heads)
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "mlp.up_proj": (inner, width),
    }

    def of_all_layers(*names: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in names:
            for layer in range(spec.layers):
                yield f"model.layers.{layer}.{name}.weight", shapes[name]

    embedding = ("model.embed_tokens.weight", (spec.vocab, width))
    norm = ("model.norm.weight", (width,))
    if header.version == 0:
        table = (spec.positions, width // spec.heads // 2)
        yield embedding
        yield from of_all_layers(*shapes)
        yield norm
        yield from (("cos", table), ("sin", table))
    else:
        yield from of_all_layers("input_layernorm", "post_attention_layernorm")
        yield norm
        yield embedding
        yield from of_all_layers(*(name for name, shape in shapes.items() if len(shape) == 2))
    if not spec.tied:
        yield "lm_head.weight", (spec.vocab, width)


def write_model(checkpoint: Llama2cFile, directory: Path, bos: int, eos: int) -> None:
    """Write the model in Hugging Face layout in fp32; only one shard is in memory at a time.

    Parameters
    ----------
    bos, eos : int
        Ids of the tokens that begin and end a sequence.
    """
    from wellread.models.load import Source

    source = Source(llama.configuration(checkpoint.header.spec, bos, eos), _never)
    model: Any = source.on_meta()
    tensors.write_model(model, directory, _in_order(checkpoint, tensors.saved_sizes(model)))


def _never() -> Any:
    raise AssertionError("this model is only written, never created in memory")


def _in_order(checkpoint: Llama2cFile, names: dict[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name in names:
        yield name, torch.from_numpy(checkpoint.read(name))
