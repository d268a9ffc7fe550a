"""The stable API: the examples of docs/api.md run, its names exist, and no package for training is needed."""

import doctest
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import ROOT, Program
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import wellread
from wellread.checkpoint import Checkpoint
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.record.history import BatchRead, History, Reading
from wellread.record.opened import Run
from wellread.record.reader import Record
from wellread.run import RunDirectory

API = ROOT / "docs" / "api.md"
STABLE = (Run, History, BatchRead, Reading, Record, Corpus, Decoder, Order, Checkpoint)


# --- the document ----------------------------------------------------------------------------------------------------


def test_examples_of_the_api_run(tiny_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "tiny-sample")
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(API.read_text(), {}, API.name, str(API), 0)
    assert len(examples.examples) > 15
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(examples, out=output.append)
    assert not result.failed, "".join(output)


def test_names_of_the_api_exist() -> None:
    classes = {kind.__name__: kind for kind in STABLE}
    tables = re.findall(r"^\| `(\w+)` \|.*\n\|---\|---\|\n((?:\| .*\n)+)", API.read_text(), re.MULTILINE)
    assert [name for name, _ in tables] == [kind.__name__ for kind in STABLE]
    for name, rows in tables:
        kind = classes[name]
        attributes = {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}
        names = [word for row in rows.splitlines() for word in re.findall(r"`(\w+)[`(]", row.split("|")[1])]
        assert names
        assert set(names) <= attributes, name
    assert sorted(wellread.__all__) == ["__version__", "open_run"]


def test_parts_of_a_run_are_read_once(tiny_run: RunDirectory, corpus: Corpus) -> None:
    run = wellread.open_run(str(tiny_run.path))
    assert (run.name, run.path) == (tiny_run.name, tiny_run.path)
    assert run.corpus is run.corpus is run.history.reader
    assert run.record is run.history.record
    assert run.tokenizer is run.history.tokenizer
    assert (run.corpus.hash, run.config.schedule.steps, run.plan.steps) == (corpus.hash, 12, 12)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 4, 8, 12]
    for batch_id in (-1, 12):
        with pytest.raises(UserError, match=rf"^batch {batch_id}: out of range, .* has batches 0 … 11$"):
            run.history.batch(batch_id)
    with pytest.raises(UserError, match=r"^batches 3:13: out of range"):
        run.history.batches(3, 13)
    columns = run.record.table(["sample_id", "loss"]).to_pydict()
    batches = list(run.history.batches(0, 12))
    assert [i for batch in batches for i in batch.sample_ids] == columns["sample_id"]
    assert [loss for batch in batches for loss in batch.losses or ()] == columns["loss"]


def test_a_run_without_a_record_can_be_opened(copied_run: RunDirectory) -> None:
    shutil.rmtree(copied_run.record)
    run = wellread.open_run(copied_run.path)
    batch = run.history.batch(3)
    assert (batch.read, batch.losses, batch.loss, batch.sample_ids) == (False, None, None, run.order.batch(3).tolist())
    with pytest.raises(UserError, match="no record "):
        _ = run.record


# --- text ------------------------------------------------------------------------------------------------------------


def same_texts(directory: Path, sequences: list[list[int]]) -> None:
    """The decoder returns the same text as transformers, for these sequences, random ones and single tokens."""
    decoder, tokenizer = Decoder.load(directory), AutoTokenizer.from_pretrained(directory)
    assert decoder.size == len(tokenizer)
    every = list(range(decoder.size))
    random = np.random.default_rng(0).integers(decoder.size, size=(50, 40)).tolist()
    for ids in [*sequences, *random, every, every[::-1], [], *([i] for i in every[:2000])]:
        assert decoder.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def test_texts_of_the_sample_corpus_equal_those_of_transformers(corpus: Corpus) -> None:
    same_texts(corpus.tokenizer, [corpus.tokens(i).tolist() for i in range(corpus.n)])


def test_texts_of_a_pretraining_corpus_equal_those_of_transformers(tmp_path: Path) -> None:
    from pretrain.prepare import prepare
    from wellread.config import PretrainConfig

    corpus = Corpus.open(
        prepare(PretrainConfig.of(model="stories-32x1x2", data="stories:200", vocab="512", corpora=str(tmp_path)))
    )
    same_texts(corpus.tokenizer, [corpus.tokens(i).tolist() for i in range(corpus.n)])


@pytest.mark.shared
def test_texts_of_pythias_tokenizer_equal_those_of_transformers(pythia_tokenizer: Path) -> None:
    text = "Ünïcödé 日本語 🦙 naïve   many     blanks\n\n\tcode() <|endoftext|> don ' t . , n't"
    tokenizer = Tokenizer.load(pythia_tokenizer)
    same_texts(pythia_tokenizer, [*tokenizer.prompts([text]), [0, 1, *range(50254, 50277)]])


def saved(directory: Path, backend: Backend, **settings: Any) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **settings).save_pretrained(directory)
    return directory


def words(kind: Any = models.WordLevel) -> Backend:
    vocab = {word: i for i, word in enumerate(("?", "</s>", "a", "do", "n't", ".", ",", "'", "'s", "▁b"))}
    backend = Backend(models.WordLevel(vocab, unk_token="?") if kind is models.WordLevel else models.BPE(vocab, []))
    if kind is models.BPE:
        backend.decoder = decoders.Metaspace()
    return backend


@pytest.mark.parametrize("kind", [models.WordLevel, models.BPE])
@pytest.mark.parametrize("cleans", [False, True])
def test_spaces_are_cleaned_up_as_in_transformers(kind: Any, cleans: bool, tmp_path: Path) -> None:
    saved(tmp_path, words(kind), clean_up_tokenization_spaces=cleans)
    same_texts(tmp_path, [[2, 3, 4, 5, 6, 7, 8, 1]])
    (cleaned,) = {Decoder.load(tmp_path).decode([3, 4, 5])}
    assert (cleaned == "don't.") == (cleans or kind is models.BPE) or kind is models.BPE


def test_tokens_missing_in_tokenizer_json_come_from_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, words())
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"pad_token": "<pad>", "additional_special_tokens": ["<x>", "<y>"]}
    file.write_text(json.dumps(settings))
    same_texts(tmp_path, [[2, 10, 11, 12]])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError) as refused:
        Decoder.load(tmp_path)
    assert re.fullmatch(
        rf"{tmp_path}/tokenizer\.json: it has no token '<\w+>', so decoding needs transformers; "
        r"run: pip install 'wellread\[train\]'",
        str(refused.value),
    )


@pytest.mark.shared
def test_a_tokenizer_without_tokenizer_json(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(shared / "stories260K" / "tok512.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    same_texts(tmp_path, [Tokenizer.load(tmp_path).prompts(["Once upon a time"])[0]])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"tokenizer\.json: it is missing, so decoding needs transformers; run: pip"):
        Decoder.load(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged \(.*\); compile the corpus again"):
        Decoder.load(tmp_path)


# --- dependencies ----------------------------------------------------------------------------------------------------

READS = """
import contextlib, io, sys

class Bare:  # hides all packages except the dependencies of wellread
    packages = {"wellread", "numpy", "pyarrow", "tokenizers", "yaml", *sys.stdlib_module_names}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.packages and not name.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Bare())
import wellread
assert not {name.partition(".")[0] for name in sys.modules} & {"numpy", "pyarrow", "tokenizers", "yaml"}
run = wellread.open_run(sys.argv[1])
assert run.history.batch(3).texts and run.history.sample(18) is not None
assert run.config and run.plan and run.checkpoints and run.record.table().num_rows and run.order.locate(18, batches=9)
from wellread.commands import read, verify
for main, *flags in (
    (verify.main,), (read.main,), (read.main, "--batch", "3"), (read.main, "--sample", "18"), (read.main, "--csv"),
    (read.main, "--text", "the"), (read.main, "--row", "sample:1"), (read.main, "--diff", "4", "8"),
):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([sys.argv[1], *flags]) == 0
    assert printed.getvalue()
"""


def test_reading_and_verifying_need_four_packages(tiny_run: RunDirectory) -> None:
    command = [sys.executable, "-c", READS, str(tiny_run.path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_read_and_verify_equal_the_commands_of_eval(program: Program, tiny_run: RunDirectory) -> None:
    for command, flags in (
        ("read", ("--batch", "3")),
        ("read", ("--sampel", "3")),
        ("verify", ()),
        ("verify", ("-x",)),
    ):
        library = program(f"wellread.commands.{command}", tiny_run.path, *flags)
        checkout = program("eval", command, tiny_run.path, *flags)
        for name in ("returncode", "stdout", "stderr"):
            assert getattr(library, name) == getattr(checkout, name)
        assert library.returncode == (2 if flags in (("--sampel", "3"), ("-x",)) else 0)


def test_without_rich_a_terminal_shows_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wellread.terminal import say, say_table

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)
    say("bold", "bold")
    say_table(["name", "n"], [["a", 12]])
    assert capsys.readouterr().out == "bold\nname   n\na     12\n"
