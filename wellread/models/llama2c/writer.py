"""Models as llama2.c's programs read them: its legacy format (v0), v1, and int8 (v2), a tensor at a time.

Formats: legacy_export, version1_export and version2_export in export.py of llama2.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

from wellread.errors import UserError
from wellread.models.llama import EPSILON, THETA
from wellread.models.load import Source
from wellread.models.spec import check_heads

if TYPE_CHECKING:
    import torch

Format = Literal["llama2c-v0", "llama2c-v1", "llama2c-int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAGIC = b"24ka"
"""0x616b3432, "ak42", as a little-endian number."""
HEADER_BYTES = 256
GROUP = 64
"""Weights that share one scale in int8, where rows divide into such groups."""

NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
INNER = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
"""llama2.c calls them w1, w2 and w3."""


@dataclass(frozen=True)
class Weights:
    """A Llama whose tensors are read when they are asked for."""

    config: Any
    read: Callable[[str], torch.Tensor]

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return bool(self.config.tie_word_embeddings)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The seven numbers of every header: width, inner width, layers, heads, heads of keys, words, positions."""
        c = self.config
        return (
            c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
            c.vocab_size, c.max_position_embeddings,
        )  # fmt: skip

    def embedding(self) -> torch.Tensor:
        """(words, width)."""
        return self.read("model.embed_tokens.weight")

    def norm(self) -> torch.Tensor:
        """The last one: (width,)."""
        return self.read("model.norm.weight")

    def outputs(self) -> Iterator[torch.Tensor]:
        """The output embedding, where it is one of its own."""
        if not self.tied:
            yield self.read("lm_head.weight")

    def layers(self, *names: str) -> Iterator[torch.Tensor]:
        """A tensor of all layers, then the next one of all layers."""
        for name in names:
            for layer in range(self.config.num_hidden_layers):
                yield self._paired(name, self.read(f"model.layers.{layer}.{name}.weight"))

    def _paired(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Queries and keys with the two numbers that are rotated together side by side; in Hugging Face's files
        they are half a head apart."""
        heads = {ATTENTION[0]: self.config.num_attention_heads, ATTENTION[1]: self.config.num_key_value_heads}
        if name not in heads:
            return weight
        return weight.view(heads[name], 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def weights(directory: Path) -> Weights:
    """Open a model for writing it in one of `FORMATS`.

    Raises
    ------
    UserError
        When it cannot be loaded, or is not what llama2.c's programs compute.
    """
    source = Source.of(directory)
    _check(directory, source.config)
    return Weights(source.config, source.reader(source.on_meta()))


def _check(directory: Path, config: Any) -> None:
    """Refuse a model that llama2.c's programs would run, if at all, as another one."""
    if config.model_type != "llama":
        raise UserError(f"{directory}: a {config.model_type}; llama2.c's formats hold Llama models alone")
    check_heads(str(directory), config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
    rope = config.rope_parameters
    built_in = {
        "rotary embedding": (rope["rope_type"], "default"),
        "base of the rotary embedding": (rope["rope_theta"], THETA),
        "epsilon of the norms": (config.rms_norm_eps, EPSILON),
        "width of a head": (config.head_dim, config.hidden_size // config.num_attention_heads),
        "activation": (config.hidden_act, "silu"),
        "bias of attention": (config.attention_bias, False),
        "bias of the inner layer": (config.mlp_bias, False),
    }
    for what, (found, needed) in built_in.items():
        if found != needed:
            raise UserError(f"{directory}: its {what} is {found}; llama2.c's programs compute with {needed}")


def write(model: Weights, file: IO[bytes], form: Format) -> None:
    """Write a model, with no more than one tensor of it in memory."""
    {"llama2c-v0": _write_v0, "llama2c-v1": _write_v1, "llama2c-int8": _write_int8}[form](model, file)


def _write_v0(model: Weights, file: IO[bytes]) -> None:
    *sizes, words, positions = model.sizes
    file.write(struct.pack("<7i", *sizes, words if model.tied else -words, positions))
    _write_floats(file, _v0_tensors(model))


def _v0_tensors(model: Weights) -> Iterator[torch.Tensor]:
    yield model.embedding()
    yield from model.layers(NORMS[0], *ATTENTION, NORMS[1], *INNER)
    yield model.norm()
    yield from rotary_tables(model.config.head_dim, model.config.max_position_embeddings)
    yield from model.outputs()


def rotary_tables(head: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, head / 2), to the last bit those of precompute_freqs_cis in model.py of llama2.c.

    Its programs compute their own by now, but the format has a place for them.
    """
    import torch

    frequencies = 1.0 / (THETA ** (torch.arange(0, head, 2)[: head // 2].float() / head))
    angles = torch.outer(torch.arange(positions), frequencies).float()
    return torch.cos(angles), torch.sin(angles)


def _write_v1(model: Weights, file: IO[bytes]) -> None:
    file.write(_header(1, model))
    _write_floats(file, _norms(model))
    _write_floats(file, _matrices(model))


def _write_int8(model: Weights, file: IO[bytes]) -> None:
    group = group_size(model.sizes[0], model.sizes[1])
    file.write(_header(2, model, struct.pack("<i", group)))
    _write_floats(file, _norms(model))
    for matrix in _matrices(model):
        numbers, scales = quantized(matrix, group)
        file.write(numbers.numpy().tobytes())
        _write_floats(file, iter([scales]))


def _header(version: int, model: Weights, more: bytes = b"") -> bytes:
    known = struct.pack("<4si7i?", MAGIC, version, *model.sizes, model.tied) + more
    return known.ljust(HEADER_BYTES, b"\0")


def _norms(model: Weights) -> Iterator[torch.Tensor]:
    yield from model.layers(*NORMS)
    yield model.norm()


def _matrices(model: Weights) -> Iterator[torch.Tensor]:
    yield model.embedding()
    yield from model.layers(*ATTENTION, *INNER)
    yield from model.outputs()


def _write_floats(file: IO[bytes], tensors: Iterator[torch.Tensor]) -> None:
    for tensor in tensors:
        file.write(tensor.contiguous().numpy().astype("<f4", copy=False).data)


def group_size(width: int, inner: int) -> int:
    """Weights per scale: 64, halved until rows of both widths divide into groups.

    llama2.c's export.py looks at the width alone; where the inner width then does not come out even (260K, 42M), its
    runq.c, which takes groups row by row, leaves the last weights of a row out.
    """
    group = GROUP
    while width % group or inner % group:
        group //= 2
    return group


def quantized(matrix: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Q8_0: int8 numbers from -127 to 127 (groups, group), and the scale of each group, its largest weight / 127.

    A weight is off by half a scale at most.
    """
    import torch

    groups = matrix.reshape(-1, group)
    scales = groups.abs().amax(dim=1) / 127.0
    numbers = torch.where(scales[:, None] > 0, groups / scales[:, None], 0.0)  # a group of zeros has no scale
    return torch.round(numbers).to(torch.int8), scales
