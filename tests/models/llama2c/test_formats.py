"""llama2.c's formats, checked with a separate reader in this file that shares no code with the library."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.export import export
from wellread.config import LoraConfig
from wellread.errors import UserError
from wellread.models.llama2c import reader, writer
from wellread.models.load import Source, initial, load_model
from wellread.models.loss import sample_losses
from wellread.models.registry import find

Array = Any
SIZES = b"\x40\0\0\0\xac\0\0\0\x05\0\0\0\x08\0\0\0\x04\0\0\0\x00\x02\0\0\x00\x02\0\0"
"""The seven numbers 64, 172, 5, 8, 4, 512, 512."""
BEGINNING = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


# --- the reader ------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """A model file in numpy; weights[name] is an array with all layers."""

    sizes: tuple[int, ...]
    weights: dict[str, Array]

    @classmethod
    def of(cls, path: Path) -> Reader:
        data = path.read_bytes()
        if data[:4] != struct.pack("<I", 0x616B3432):
            sizes, at, tied, group = struct.unpack("<7i", data[:28]), 28, None, 0
        else:
            version, *numbers = struct.unpack("<8i", data[4:36])
            sizes, at, tied = tuple(numbers), 256, data[36]
            group = struct.unpack("<i", data[37:41])[0] if version == 2 else 0
        dim, hidden, layers, heads, kv_heads, vocab, length = sizes
        if tied is None:
            tied, vocab = vocab > 0, abs(vocab)
        kv = dim * kv_heads // heads
        shapes = {
            "embed": (1, vocab, dim), "norm1": (layers, dim), "wq": (layers, dim, dim), "wk": (layers, kv, dim),
            "wv": (layers, kv, dim), "wo": (layers, dim, dim), "norm2": (layers, dim), "w1": (layers, hidden, dim),
            "w2": (layers, dim, hidden), "w3": (layers, hidden, dim), "norm": (1, dim),
            "cos": (1, length, dim // heads // 2), "sin": (1, length, dim // heads // 2), "out": (1, vocab, dim),
        }  # fmt: skip
        legacy = ["embed", "norm1", "wq", "wk", "wv", "wo", "norm2", "w1", "w2", "w3", "norm", "cos", "sin"]
        later = ["norm1", "norm2", "norm", "embed", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
        weights: dict[str, Array] = {}
        for name in (legacy if at == 28 else later) + ([] if tied else ["out"]):
            parts = []
            for _ in range(shapes[name][0]):
                count = int(np.prod(shapes[name][1:]))
                if group and len(shapes[name]) == 3:
                    numbers8 = np.frombuffer(data, np.int8, count, at)
                    scales = np.frombuffer(data, "<f4", count // group, at + count)
                    at += count + 4 * (count // group)
                    parts.append((numbers8.reshape(-1, group) * scales[:, None]).ravel())
                else:
                    parts.append(np.frombuffer(data, "<f4", count, at))
                    at += 4 * count
            weights[name] = np.stack(parts).reshape(shapes[name]).astype(np.float32)
        assert at == len(data)
        weights.setdefault("out", weights["embed"])
        return cls((dim, hidden, layers, heads, kv_heads, vocab, length), weights)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The next `count` tokens, computed as in run.c: one position at a time, rotating pairs of neighbors."""
        dim, _, layers, heads, kv_heads, _, _ = self.sizes
        w, head, ids = self.weights, dim // heads, list(tokens)
        frequencies = np.float32(1) / np.float32(10000) ** (np.arange(0, head, 2, dtype=np.float32) / np.float32(head))
        cache: list[list[tuple[Array, Array]]] = [[] for _ in range(layers)]
        for position in range(len(tokens) + count - 1):
            turn = np.exp(1j * (np.float32(position) * frequencies)).astype(np.complex64)
            x = w["embed"][0][ids[position]]
            for layer in range(layers):
                y = normed(x, w["norm1"][layer])
                q = rotated(w["wq"][layer] @ y, heads, turn)
                k = rotated(w["wk"][layer] @ y, kv_heads, turn)
                cache[layer].append((k, (w["wv"][layer] @ y).reshape(kv_heads, head)))
                keys, values = (
                    np.stack(each).repeat(heads // kv_heads, axis=1) for each in zip(*cache[layer], strict=True)
                )
                scores = np.einsum("hd,thd->ht", q, keys) / np.sqrt(np.float32(head))
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
                x = x + w["wo"][layer] @ np.einsum("ht,thd->hd", scores, values).ravel()
                y = normed(x, w["norm2"][layer])
                gate = w["w1"][layer] @ y
                x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ y))
            if position == len(ids) - 1:
                ids.append(int(np.argmax(w["out"][0] @ normed(x, w["norm"][0]))))
        return ids[len(tokens) :]


def normed(x: Array, weight: Array) -> Array:
    return weight * (x / np.sqrt((x * x).mean() + np.float32(1e-5)))


def rotated(x: Array, heads: int, turn: Array) -> Array:
    pairs = np.ascontiguousarray(x).view(np.complex64).reshape(heads, -1)
    return np.ascontiguousarray(pairs * turn).view(np.float32)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "stories260K"


@pytest.fixture(scope="module")
def imported(stories: Path, program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real stories260K in Hugging Face layout."""
    out = tmp_path_factory.mktemp("imported") / "stories"
    program("pretrain", "import", stories / "stories260K.bin", stories / "tok512.model", "--out", out, check=True)
    return out


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads share each KV head, the output embedding is not tied, and large weights prevent equal logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.3,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("random")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def written(model: Path, form: writer.Format, folder: Path) -> Path:
    path = folder / f"{form}.bin"
    with open(path, "wb") as file:
        writer.write(writer.weights(model), file, form)
    return path


def greedy_of_transformers(directory: Path, prompt: list[int], count: int) -> list[int]:
    model: Any = load_model(directory)
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return list(map(int, output[0, len(prompt) :]))


# --- greedy text -----------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_greedy_tokens_of_stories260k(imported: Path, stories: Path, tmp_path: Path) -> None:
    expected = greedy_of_transformers(imported, [1], 200)
    assert len(expected) == 200
    real = Reader.of(stories / "stories260K.bin")
    assert real.greedy([1], 200) == expected
    later = Reader.of(written(imported, "llama2c-v1", tmp_path))
    assert later.sizes == real.sizes
    assert real.weights.keys() - later.weights.keys() == {"cos", "sin"}
    assert all((weight == real.weights[name]).all() for name, weight in later.weights.items())
    from sentencepiece import SentencePieceProcessor

    text = SentencePieceProcessor(model_file=str(stories / "tok512.model")).decode(expected)
    assert text.startswith(BEGINNING)


def test_greedy_tokens_of_a_random_model_with_grouped_queries(random_model: Path, tmp_path: Path) -> None:
    prompt = [1, 50, 7]
    expected = greedy_of_transformers(random_model, prompt, 200)
    assert len(set(expected)) > 20
    for form in ("llama2c-v0", "llama2c-v1"):
        path = written(random_model, form, tmp_path)
        assert Reader.of(path).greedy(prompt, 200) == expected
        checkpoint = reader.Llama2cFile.open(path)
        reader.write_model(checkpoint, tmp_path / f"back-{form}", 1, 2)
        original = load_model(random_model).state_dict()
        for name, value in load_model(tmp_path / f"back-{form}").state_dict().items():
            assert torch.equal(value, original[name]), name
    assert (tmp_path / "llama2c-v0.bin").read_bytes()[20:24] == b"\x9f\xff\xff\xff"  # -97: not tied
    assert (tmp_path / "llama2c-v1.bin").read_bytes()[36] == 0


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_headers(imported: Path, tmp_path: Path) -> None:
    assert written(imported, "llama2c-v0", tmp_path).read_bytes()[:28] == SIZES
    first = written(imported, "llama2c-v1", tmp_path).read_bytes()
    assert first[:256] == b"24ka\x01\0\0\0" + SIZES + b"\x01" + bytes(219)
    assert len(first) == 256 + 4 * 260_032
    second = written(imported, "llama2c-int8", tmp_path).read_bytes()
    assert second[:256] == b"24ka\x02\0\0\0" + SIZES + b"\x01" + b"\x04\0\0\0" + bytes(215)
    norms = 11 * 64
    assert len(second) == 256 + 4 * norms + 2 * (
        260_032 - norms
    )  # one byte per weight, plus a scale of 4 bytes per 4 weights


@pytest.mark.shared
def test_importing_and_exporting_gives_the_same_bytes(
    imported: Path, stories: Path, in_process: Any, tmp_path: Path
) -> None:
    out = tmp_path / "again.bin"
    process = in_process("pretrain", "export", imported, "--format", "llama2c-v0", "--out", out, check=True)
    assert f"{out}: 1,056,540 bytes, llama2c-v0" in process.stdout
    assert out.read_bytes() == (stories / "stories260K.bin").read_bytes()
    assert (tmp_path / "tokenizer.bin").read_bytes() == (stories / "tok512.bin").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.bin", "tokenizer.bin"]


@pytest.mark.parametrize(
    ("width", "inner", "group"), [(64, 172, 4), (288, 768, 32), (512, 1376, 32), (768, 2048, 64), (48, 80, 16)]
)
def test_groups_divide_every_row(width: int, inner: int, group: int) -> None:
    assert writer.group_size(width, inner) == group


def test_int8_is_within_half_a_step(random_model: Path, tmp_path: Path) -> None:
    exact = Reader.of(written(random_model, "llama2c-v1", tmp_path))
    rough = Reader.of(written(random_model, "llama2c-int8", tmp_path))
    assert rough.sizes == exact.sizes
    for name, weight in exact.weights.items():
        groups = weight.reshape(-1, 16)
        bound = 0 if "norm" in name else np.abs(groups).max(axis=1, keepdims=True) / 127 / 2 * (1 + 1e-5)
        error = np.abs(rough.weights[name].reshape(-1, 16) - groups)
        assert (error <= bound).all(), name
        if "norm" not in name:
            assert error.max() > 0.8 * bound.max(), name  # the error is not much smaller, so int8 was used


def test_a_group_of_zeros_stays_zero() -> None:
    numbers, scales = writer.quantized(torch.tensor([[0.0, 0, 0, 0], [1, -127, 0.5, 1.5]]), 4)
    assert numbers.tolist() == [[0, 0, 0, 0], [1, -127, 0, 2]]
    assert scales.tolist() == [0, 1]


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the random model that changes its outputs, as a run saves it."""
    lora = LoraConfig(rank=4, alpha=16.0, targets="q_proj,v_proj,down_proj")
    source = initial(find(str(random_model)), 0, 0, lora)
    model, directory = source.on_meta(), tmp_path_factory.mktemp("adapter")
    read, generator = source.reader(model), torch.Generator().manual_seed(7)
    values = ((name, torch.randn(read(name).shape, generator=generator)) for name in source.saved_names(model))
    source.write(model, directory, values)
    return directory


def test_an_adapter_is_merged_into_the_exported_weights(adapter: Path, random_model: Path, tmp_path: Path) -> None:
    merged, base = load_model(adapter).state_dict(), load_model(random_model).state_dict()
    assert sum(not torch.equal(merged[name], base[name]) for name in base) == 3 * 3  # matrices, layers
    for form in ("llama2c-v0", "llama2c-v1", "hf"):
        export(adapter, form, tmp_path / form)
        if form != "hf":
            reader.write_model(reader.Llama2cFile.open(tmp_path / form), tmp_path / f"back-{form}", 1, 2)
        exported = load_model(tmp_path / (form if form == "hf" else f"back-{form}")).state_dict()
        assert exported.keys() == merged.keys()
        assert all(torch.equal(exported[name], merged[name]) for name in merged), form
    assert Reader.of(tmp_path / "llama2c-v0").greedy([1, 50, 7], 40) == greedy_of_transformers(adapter, [1, 50, 7], 40)
    assert Reader.of(written(adapter, "llama2c-int8", tmp_path)).sizes[0] == 48
    rough = Reader.of(tmp_path / "llama2c-int8.bin").weights["wq"]
    exact = Reader.of(tmp_path / "llama2c-v1").weights["wq"]
    assert np.abs(rough - exact).max() <= np.abs(exact).max() / 127


def test_a_reader_of_an_adapter_knows_only_names_of_the_model_with_it(adapter: Path) -> None:
    source = Source.of(adapter)
    read = source.reader(source.on_meta())
    read("model.layers.0.self_attn.q_proj.base_layer.weight")
    with pytest.raises(KeyError):  # the matrix of the base model is not that of the model with the adapter
        read("model.layers.0.self_attn.q_proj.weight")


# --- losses and tokenizer --------------------------------------------------------------------------------------------


def nats_per_token(directory: Path, texts: list[str]) -> float:
    from wellread.corpus.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.load(directory), load_model(directory)
    encoded = sorted((ids[:512] for ids in tokenizer.prompts(texts)), key=len)
    losses, count = 0.0, 0
    for first in range(0, len(encoded), 64):
        batch = encoded[first : first + 64]
        tokens = torch.tensor([ids + [0] * (len(batch[-1]) - len(ids)) for ids in batch])
        targets = torch.arange(tokens.shape[1])[None] < torch.tensor([[len(ids)] for ids in batch])
        targets[:, 0] = False
        with torch.inference_mode():
            losses += float(sample_losses(model, tokens, targets).sum())
        count += int(targets.sum())
    return losses / count


@pytest.mark.shared
@pytest.mark.long
@pytest.mark.slow
def test_the_loss_of_stories260k(imported: Path, shared: Path, tmp_path: Path) -> None:
    text = (shared / "tinystories" / "train_head_2MiB.txt").read_text(errors="ignore")
    texts = [story.strip()[:800] for story in text.split("<|endoftext|>")]
    assert len(texts) == 2317
    few = texts[::10]
    exact = nats_per_token(imported, few)
    assert exact == pytest.approx(1.466, abs=0.002)  # 1.464 for all texts
    checkpoint = reader.Llama2cFile.open(written(imported, "llama2c-int8", tmp_path))
    reader.write_model(checkpoint, imported.parent / "int8", 1, 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (imported.parent / "int8" / name).write_bytes((imported / name).read_bytes())
    assert 0 < abs(nats_per_token(imported.parent / "int8", few) - exact) < 0.005
    prompt = [1]
    generated = Reader.of(tmp_path / "llama2c-int8.bin").greedy(prompt, 200)
    assert generated[:50] == greedy_of_transformers(imported, prompt, 50)


@pytest.mark.shared
def test_the_imported_tokenizer_is_sentencepiece(imported: Path, stories: Path, shared: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    original: Any = SentencePieceProcessor(model_file=str(stories / "tok512.model"))
    converted: Any = AutoTokenizer.from_pretrained(imported)
    text = (shared / "tinystories" / "train_head_2MiB.txt").read_text(errors="ignore")
    texts = [*text.split("<|endoftext|>")[:150], "", " ", "a  b ", "\n \n", "é漢😀\t", "<0x0A>", "!!!!!", "1234", "▁a"]
    for each in texts:
        assert converted(each, verbose=False)["input_ids"] == [1, *original.encode(each)], each
    assert (converted.bos_token_id, converted.eos_token_id, len(converted)) == (1, 2, 512)
    assert json.loads((imported / "config.json").read_text())["eos_token_id"] == [1, 2]


# --- bad input -------------------------------------------------------------------------------------------------------


def change(data: bytes, at: int, number: int) -> bytes:
    return data[:at] + struct.pack("<i", number) + data[at + 4 :]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-4], "has 1,056,536 bytes, but its header needs 1,056,540; download it again"),
        (lambda data: data + b"\0", "has 1,056,541 bytes, but its header needs 1,056,540; download it again"),
        (lambda data: data[:20], "has 20 bytes, less than a header; download it again"),
        (lambda data: b"", "has 0 bytes, less than a header; download it again"),
        (lambda data: change(data, 0, 0), "its header has dim 0; this is not a checkpoint of llama2.c"),
        (lambda data: change(data, 8, -5), "its header has n_layers -5; this is not a checkpoint of llama2.c"),
        (lambda data: change(data, 24, 1 << 30), "its header has max_seq_len 1073741824"),
        (lambda data: change(data, 12, 7), "7 heads do not divide the width 64"),
        (lambda data: change(data, 16, 3), "3 heads of keys and values do not divide 8 heads"),
        (lambda data: change(data, 20, -512), "has 1,056,540 bytes, but its header needs 1,187,612"),
        (lambda data: b"24ka\3\0\0\0" + data, "version 3 of llama2.c's format; only 0, 1 and 2 (int8) are supported"),
        (lambda data: b"24ka\1\0\0\0" + data[:28], "has 36 bytes, less than a header"),
        (
            lambda data: b"24ka\2\0\0\0" + SIZES + b"\1" + struct.pack("<i", 7) + bytes(300),
            "its header has groups of 7, which do not divide its tensors",
        ),
        (
            lambda data: data[: -2 * 512 * 4 * 4] + bytes(2 * 512 * 4 * 4),
            "its rotary tables do not have base 10,000",
        ),
    ],
)  # fmt: skip
def test_invalid_checkpoints(damage: Any, message: str, stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(damage((stories / "stories260K.bin").read_bytes()))
    with pytest.raises(UserError) as caught:
        reader.Llama2cFile.open(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rms_norm_eps": 1e-6}, "its epsilon of the norms is 1e-06; llama2.c's programs support only 1e-05"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "its base of the rotary embedding is 5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "its rotary embedding is"),
        ({"attention_bias": True}, "its bias of attention is True"),
        ({"head_dim": 16}, "its width of a head is 16; llama2.c's programs support only 8"),
    ],
)  # fmt: skip
def test_models_with_constants_that_llama2c_does_not_support(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**({"rms_norm_eps": 1e-5, "num_attention_heads": 2} | small | settings))
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        writer.weights(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: {message}")


def test_other_families_are_not_supported(small_model: Path) -> None:
    with pytest.raises(UserError, match=r"model type gpt_neox; llama2\.c's formats support only Llama"):
        writer.weights(small_model)


def test_int8_with_tiny_groups_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=81,
        num_hidden_layers=1,
        num_attention_heads=6,
        rms_norm_eps=1e-5,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="--format llama2c-int8: one scale for 1 weights each, because the widths 48 a"):
        export(tmp_path / "model", "llama2c-int8", tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()
