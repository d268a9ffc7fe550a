"""`read --text`: a text that occurs everywhere is cut off, and reading a run needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wellread.commands import read
from wellread.corpus import suffixes
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record import search as searching
from wellread.record.index import open_index
from wellread.record.opened import Run
from wellread.record.search import search
from wellread.run import RunDirectory
from wellread.units import plural

FIXTURES = Path(__file__).parents[1] / "fixtures" / "run-c5af5a2"
RUN = FIXTURES / "finetune" / "run"
TEXT = "e"


def containing(run: Run, text: str) -> list[int]:
    """Samples that contain a text: all are decoded."""
    ids = range(run.corpus.n)
    return [i for i in ids if text in run.tokenizer.decode(run.corpus.tokens(i).tolist())]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., list[int]]:
    """Run `read --text --jsonl`; return the ids of the samples."""

    def call(*words: object) -> list[int]:
        assert read.main([str(RUN), "--text", TEXT, "--jsonl", str(tmp_path / "hits"), *map(str, words)]) == 0
        return [json.loads(line)["sample_id"] for line in (tmp_path / "hits").read_text().splitlines()]

    return call


def test_a_text_that_occurs_everywhere_is_cut_off(
    jsonl: Callable[..., list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(RUN)
    expected = containing(run, TEXT)
    n = len(expected)
    assert n > 12
    assert jsonl("--limit", 5) == expected[:5]
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(f"cut off at --limit 5: the first 5 samples of {run.corpus.n:,} that contain it (0 sealed); read ")
    )
    assert jsonl("--limit", n - 1) == expected[:-1]
    assert "; more follow: raise --limit, or give a longer text\n" in capsys.readouterr().out
    assert jsonl("--limit", n) == jsonl() == expected
    assert f"\n{n} samples of {run.corpus.n:,} contain it (" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--limit 0: must be at least 1$"):
        jsonl("--limit", 0)
    with pytest.raises(UserError, match=r"^--limit goes with --text, not with --batch$"):
        read.main([str(RUN), "--batch", "1", "--limit", "3"])


def test_only_the_blocks_before_the_end_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "TOKENS_AT_ONCE", 64)
    run, searched = Run.open(RUN), list[int]()
    hits = search(run.corpus, run.tokenizer, TEXT, most=3, progress=searched.append)
    assert [hit.sample_id for hit in hits] == containing(run, TEXT)[:3]
    assert len(searched) < 3 < run.corpus.n - 3


def test_a_text_with_more_places_than_are_taken_from_an_index_is_scanned(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same samples with the index, with the scan that replaces it, and without an index."""
    copy = Corpus(tmp_path, corpus.meta)
    for path in corpus.path.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokens.bin").unlink()
    (tmp_path / "tokens.bin").write_bytes((corpus.path / "tokens.bin").read_bytes())
    suffixes.build(tmp_path / "tokens.bin", np.dtype(corpus.meta["dtype"]))
    index, decoder = open_index(copy), Decoder.load(corpus.tokenizer)
    assert index is not None
    scanned = search(copy, decoder, TEXT)
    calls = list[int]()
    assert search(copy, decoder, TEXT, index=index, progress=calls.append) == scanned
    assert not calls
    monkeypatch.setattr(searching, "PLACES_AT_ONCE", 100)
    assert search(copy, decoder, TEXT, index=index, progress=calls.append) == scanned
    assert calls
    assert search(copy, decoder, TEXT, index=index, most=7) == scanned[:7]


def test_readings_of_several_samples_are_those_of_each() -> None:
    history = Run.open(RUN).history
    ids = [3, 0, 7, history.reader.n - 1, 3]
    assert history.readings(ids) == [history.sample(i) for i in ids]


def test_reading_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "from wellread.commands.read import main\n"
        "queries = (['--batch', '1'], ['--text', 'e'], ['--sample', '3'], [])\n"
        "code = sum(main([sys.argv[1], *words]) for words in queries)\n"
        "loaded = {'torch', 'transformers', 'deepspeed', 'datasets', 'scipy'} & {*sys.modules}\n"
        "sys.exit(code or ' '.join(sorted(loaded)) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", script, str(RUN)], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


# --- copies of its tokens


def counted_copies(run: Run, text: str) -> dict[str, int]:
    """Places of the tokens of a text in trainable and sealed samples: all are compared."""
    window, counts = run.tokenizer.encode(text)[0], [0, 0]
    for i in range(run.corpus.n):
        tokens = run.corpus.tokens(i).tolist()
        is_sealed = i >= run.corpus.n_trainable
        counts[is_sealed] += sum(tokens[k : k + len(window)] == window for k in range(len(tokens)))
    return {"tokens": len(window), "trainable": counts[0], "sealed": counts[1]}


def test_copies_of_the_tokens_of_a_text_with_and_without_an_index(
    tiny_run: RunDirectory, copied_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tiny_run` has no index, its copy has one."""
    run = Run.open(tiny_run.path)
    suffixes.build(copied_run.corpus / "tokens.bin", np.dtype(run.corpus.meta["dtype"]))
    first = run.tokenizer.decode(run.corpus.tokens(0).tolist())
    sealed = run.tokenizer.decode(run.corpus.tokens(run.corpus.n - 1).tolist())
    for text in ("e", " the ", " the", "\n\n### Response:\n", first[40:60], sealed[30:50], first):
        expected = counted_copies(run, text)
        words = (
            f"its sequence of {plural(expected['tokens'], 'token')} occurs "
            f"{plural(expected['trainable'] + expected['sealed'], 'time')}: {expected['trainable']:,} in trainable "
            f"samples, {expected['sealed']:,} in sealed ones"
        )
        for of in (tiny_run, copied_run):
            assert read.main([str(of.path), "--text", text, "--limit", "3", "--jsonl", str(tmp_path / "hits")]) == 0
            assert capsys.readouterr().out.splitlines()[-2] == words
            hits = [json.loads(line) for line in (tmp_path / "hits").read_text().splitlines()]
            assert 1 <= len(hits) <= 3
            assert all(hit["copies"] == expected for hit in hits)
    assert counted_copies(run, "\n\n### Response:\n")["sealed"] > 0


def test_copies_are_not_counted_in_a_long_corpus_without_an_index(
    tiny_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wellread.record.copies.SCANNED", 1000)
    assert read.main([str(tiny_run.path), "--text", "e", "--limit", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == (
        "copies of its tokens are not counted: too many tokens for a scan"
    )
    assert read.main([str(tiny_run.path), "--text", "e", "--limit", "1", "--jsonl", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["copies"] is None
