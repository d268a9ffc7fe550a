"""Writing models in the formats of llama2.c: legacy (v0), v1, and int8 (v2), one tensor at a time.

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
"""0x616b3432, "ak42", as a little-endian integer."""
HEADER_BYTES = 256
GROUP = 64
"""Number of weights that share one scale in int8, if it divides the rows."""

NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
INNER = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
"""llama2.c calls them w1, w2 and w3."""


@dataclass(frozen=True)
class Weights:
    """A Llama model; tensors are read on request."""

    config: Any
    read: Callable[[str], torch.Tensor]

    @property
    def tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return bool(self.config.tie_word_embeddings)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The seven numbers of a header: width, inner width, layers, heads, KV heads, vocabulary size, positions."""
        c = self.config
        return (
            c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
            c.vocab_size, c.max_position_embeddings,
        )  # fmt: skip

    def embedding(self) -> torch.Tensor:
        """Input embedding: (vocabulary size, width)."""
        return self.read("model.embed_tokens.weight")

    def norm(self) -> torch.Tensor:
        """Final norm: (width,)."""
        return self.read("model.norm.weight")

    def outputs(self) -> Iterator[torch.Tensor]:
        """The output embedding, if it is not tied."""
        if not self.tied:
            yield self.read("lm_head.weight")

    def layers(self, *names: str) -> Iterator[torch.Tensor]:
        """For each name, the tensors of all layers."""
        for name in names:
            for layer in range(self.config.num_hidden_layers):
                yield self._paired(name, self.read(f"model.layers.{layer}.{name}.weight"))

    def _paired(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Reorder queries and keys: llama2.c rotates pairs of neighboring rows, Hugging Face rows half a head apart."""
        heads = {ATTENTION[0]: self.config.num_attention_heads, ATTENTION[1]: self.config.num_key_value_heads}
        if name not in heads:
            return weight
        return weight.view(heads[name], 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def weights(directory: Path) -> Weights:
    """Open a model for writing it in one of `FORMATS`; an adapter is merged into the weights of its base model.

    Raises
    ------
    UserError
        When it cannot be loaded, or is not supported by llama2.c's programs.
    """
    source = Source.of(directory)
    _check(directory, source.config)
    return Weights(source.config, source.merged()[1])


def _check(directory: Path, config: Any) -> None:
    """Raise an error for a model that llama2.c's programs cannot run, or would run with other constants."""
    if config.model_type != "llama":
        raise UserError(f"{directory}: model type {config.model_type}; llama2.c's formats support only Llama")
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
    for what, (value, supported) in built_in.items():
        if value != supported:
            raise UserError(f"{directory}: its {what} is {value}; llama2.c's programs support only {supported}")


def write(model: Weights, file: IO[bytes], form: Format) -> None:
    """Write a model; only one tensor is in memory at a time."""
    {"llama2c-v0": _write_v0, "llama2c-v1": _write_v1, "llama2c-int8": _write_int8}[form](model, file)


def _write_v0(model: Weights, file: IO[bytes]) -> None:
    *sizes, vocab, positions = model.sizes
    file.write(struct.pack("<7i", *sizes, vocab if model.tied else -vocab, positions))
    _write_floats(file, _v0_tensors(model))


def _v0_tensors(model: Weights) -> Iterator[torch.Tensor]:
    yield model.embedding()
    yield from model.layers(NORMS[0], *ATTENTION, NORMS[1], *INNER)
    yield model.norm()
    yield from rotary_tables(model.config.head_dim, model.config.max_position_embeddings)
    yield from model.outputs()


def rotary_tables(head: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, head / 2), bitwise equal to precompute_freqs_cis in model.py of llama2.c.

    Current versions of its programs compute them, but the format still contains them.
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
    fields = struct.pack("<4si7i?", MAGIC, version, *model.sizes, model.tied) + more
    return fields.ljust(HEADER_BYTES, b"\0")


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


INT8: Format = "llama2c-int8"
SMALLEST_GROUP = 4
"""Weights per scale in int8, so that the file is smaller than in fp32."""


def group_size(width: int, inner: int) -> int:
    """Weights per scale: 64, halved until it divides both widths.

    llama2.c's export.py considers only the width. If the group size does not divide the inner width (260K, 42M), its
    runq.c, which reads groups row by row, ignores the last weights of each row.
    """
    group = GROUP
    while width % group or inner % group:
        group //= 2
    return group


def quantized(matrix: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Q8_0: int8 numbers from -127 to 127 (groups, group), and the scale of each group: its largest magnitude / 127.

    The error of a weight is at most half a scale.
    """
    import torch

    groups = matrix.reshape(-1, group)
    scales = groups.abs().amax(dim=1) / 127.0
    numbers = torch.where(scales[:, None] > 0, groups / scales[:, None], 0.0)  # avoid 0 / 0 for a group of zeros
    return torch.round(numbers).to(torch.int8), scales
