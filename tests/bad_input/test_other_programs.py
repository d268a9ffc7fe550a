"""Case 24: what was found when other programs were used with this one. A test for each point, in its order."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pretrain.export import export
from pretrain.sample import sample
from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.models.headers import _header
from wellread.models.sampling import Settings
from wellread.run import RunDirectory
from wellread.train import sealed

STORIES = ["A story.", "Two\n\nparts.", "Three."]
Compile = Callable[..., str]


@pytest.fixture
def compiled(in_process: Any, tmp_path: Path) -> Compile:
    """Compile raw text with `prepare finetune`; return what it prints."""

    def call(path: Path) -> str:
        flags = ["--data", f"text@{path}", "--corpora", tmp_path / "corpora", "--holdout", 0, "--seq_len", 64]
        result = in_process("finetune", "prepare", *flags, "--show", 9, check=True)
        return str(result.stdout + result.stderr)

    return call


def lm_dataformat(path: Path) -> None:
    """The texts as lm_dataformat 0.0.20 writes them, by the name of the file."""
    name, compress = path.name, zstandard.ZstdCompressor().compress
    lines = "".join(json.dumps({"text": text.split("\n\n"), "meta": {}}) + "\n" for text in STORIES).encode()
    if name.endswith(".jsonl.zst"):
        path.write_bytes(compress(lines))
    elif name.endswith(".json.zst"):
        path.write_bytes(compress(json.dumps(STORIES).encode()))
    elif name.endswith(".dat.zst"):
        path.write_bytes(compress(b"".join(b"%016d" % len(text) + text.encode() for text in STORIES)))
    elif name.endswith(".json.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(text) + "\n" for text in STORIES).encode()))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for i, text in enumerate(STORIES):
                archive.writestr(f"{i}.txt", text)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for i, text in enumerate(STORIES):
                member = tarfile.TarInfo(f"{i}.txt")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))


ARCHIVES = ["a.jsonl.zst", "a.json.zst", "a.dat.zst", "a.json.gz", "a.zip", "a.tar.gz"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_point_1_archives_of_lm_dataformat(compiled: Compile, tmp_path: Path, name: str) -> None:
    lm_dataformat(tmp_path / name)
    printed = compiled(tmp_path / name)
    assert printed.startswith("compiling 3 rows of text into ")
    assert all(f"{text}<|endoftext|>⟧" in printed.replace("⟦", "") for text in STORIES)


def test_point_2_a_text_file_is_one_document(compiled: Compile, tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text("one <|endoftext|>" * (i == 3) + f"number {i}")
    printed = compiled(folder)
    assert f"{folder}: 1 of 20 text files contain <|endoftext|> and are split there into several" in printed
    assert "compiling 21 rows of text (20 files) into " in printed


@pytest.mark.parametrize(("inner", "group"), [(80, 16), (81, 1)])
def test_point_3_the_group_of_an_int8_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inner: int, group: int
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 6, "rms_norm_eps": 1e-5}
    LlamaForCausalLM(LlamaConfig(vocab_size=97, intermediate_size=inner, **sizes)).save_pretrained(tmp_path / "m")
    if group < 4:
        with pytest.raises(UserError, match=f"--format llama2c-int8: one scale for {group} weights each, because the"):
            export(tmp_path / "m", "llama2c-int8", tmp_path / "out.bin")
        return
    export(tmp_path / "m", "llama2c-int8", tmp_path / "out.bin")
    assert f"llama2c-int8, one scale for {group} weights each" in capsys.readouterr().out


def test_point_4_decoding_needs_no_end_token(in_process: Any, corpus: Corpus, texts: list[str], tmp_path: Path) -> None:
    from wellread.data.sources.megatron_write import write

    write(tmp_path / "document", (corpus.tokens(i) for i in range(4)))
    (tmp_path / "bare").mkdir()
    shutil.copyfile(corpus.tokenizer / "tokenizer.json", tmp_path / "bare/tokenizer.json")
    order = ["--order", "sequential", "--batch_size", 4, "--batch", 0]
    flags = ["--corpus", tmp_path / "document", *order, "--tokenizer", tmp_path / "bare"]
    printed = in_process("wellread", "read", *flags, check=True).stdout
    assert texts[2].split("\n")[0] in printed


def test_point_5_programs_read_the_record_by_pattern(tiny_run: RunDirectory) -> None:
    """docs/formats.md says so: a directory with head.json is not a table."""
    import duckdb
    import polars as pl

    assert len(pl.read_parquet(tiny_run.record / "part-*.parquet")) == 12 * 16
    rows = duckdb.sql(f"select * from read_parquet('{tiny_run.record}/part-*.parquet')")
    assert len(rows.fetchall()) == 12 * 16


@pytest.mark.shared
def test_point_6_all_positions_can_be_written(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain.import_llama2c import import_llama2c

    real = shared / "stories260K"
    import_llama2c(real / "stories260K.bin", real / "tok512.model", tmp_path / "model")
    sample(tmp_path / "model", "", Settings(temperature=0, tokens=512))
    assert "Lily" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--tokens 513: the text has 1 tokens and the model only 512 .* at most 512"):
        sample(tmp_path / "model", "", Settings(tokens=513))


@pytest.mark.shared
def test_point_7_kept_prompts_can_be_tokenized_again(shared: Path, tmp_path: Path) -> None:
    shutil.copyfile(shared / "tokenizers/llama2_tokenizer.model", tmp_path / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    tokenizer = Tokenizer.load(tmp_path)
    (prompt,) = tokenizer.prompts(["Once upon a time"])
    text = tokenizer.decode(sealed._without_begin(prompt, tokenizer))
    assert text == "Once upon a time"
    assert tokenizer.prompts([text]) == [prompt]


def test_point_8_the_checkpoint_of_step_0_is_complete(tiny_run: RunDirectory) -> None:
    """docs/formats.md says so: it holds the initial weights in fp32 even if no step has changed them."""
    first, *_, last = list_checkpoints(tiny_run.checkpoints)
    headers = [_header(checkpoint.model / "model.safetensors") for checkpoint in (first, last)]
    assert first.step == 0
    assert {place.dtype for place in headers[0].values()} == {"F32"}
    assert headers[0].keys() == headers[1].keys()


@pytest.mark.parametrize("original", ["a long text ", ["a long text ", "in two parts "]])
def test_point_9_an_empty_text_next_to_a_full_column(in_process: Any, tmp_path: Path, original: object) -> None:
    rows = [{"text": "" if i else "x", "original": original} for i in range(10)]
    (tmp_path / "pile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = in_process("finetune", "prepare", "--data", f"text@{tmp_path / 'pile.jsonl'}", "--corpora", tmp_path / "c")
    assert result.returncode == 2
    assert "most texts are empty, but column 'original' next to them has content; describe the" in result.stderr
