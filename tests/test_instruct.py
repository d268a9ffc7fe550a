"""Instruction rows: templates, broken rows, and exactly which tokens carry loss."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.prepare import prepare, tokenise
from wellread.config import RunConfig
from wellread.data.corpus import Corpus
from wellread.data.instruct import SCHEMAS, Example, corpus_settings, example, recognise
from wellread.data.seal import document_id, is_sealed
from wellread.data.sources import find
from wellread.data.tokenizer import Tokenizer

DOLLY, ALPACA = SCHEMAS["dolly"], SCHEMAS["alpaca"]


def row(**changes: Any) -> dict[str, Any]:
    return {"instruction": "Add 1 and 1.", "context": "", "response": "2", "category": "open_qa"} | changes


def test_dolly_texts() -> None:
    assert example(row(), DOLLY) == Example("### Instruction:\nAdd 1 and 1.\n\n### Response:\n", "2", "open_qa")
    assert example(row(context=" Sums. "), DOLLY) == Example(
        "### Instruction:\nAdd 1 and 1.\n\n### Context:\nSums.\n\n### Response:\n", "2", "open_qa"
    )


def test_alpaca_texts_are_those_of_the_release() -> None:
    """The two prompts of stanford_alpaca/train.py."""
    assert example({"instruction": "Add.", "input": "1 1", "output": "2"}, ALPACA) == Example(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n",
        "2",
        "",
    )
    assert example({"instruction": "Add.", "input": "", "output": "2"}, ALPACA) == Example(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n",
        "2",
        "",
    )


def test_braces_in_a_row_are_text() -> None:
    found = example(row(instruction="Say {context} {instruction} {0}", context="{response} {instruction}"), DOLLY)
    assert isinstance(found, Example)
    assert found.prompt == (
        "### Instruction:\nSay {context} {instruction} {0}\n\n### Context:\n{response} {instruction}\n\n### Response:\n"
    )


@pytest.mark.parametrize("context", ["", " \n", None])
def test_blank_context_counts_as_none(context: str | None) -> None:
    found = example(row(context=context), DOLLY)
    assert isinstance(found, Example)
    assert "Context" not in found.prompt
    lacking = row()
    del lacking["context"]
    assert example(lacking, DOLLY) == found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"instruction": None}, "no 'instruction'"),
        ({"instruction": " \n"}, "no 'instruction'"),
        ({"instruction": 7}, "'instruction' is int, not text"),
        ({"response": 7}, "'response' is int, not text"),
        ({"response": ["a"]}, "'response' is list, not text"),
        ({"context": {}}, "'context' is dict, not text"),
        (
            {"response": "\ud83d"},
            "'response' holds half of a surrogate pair (a character cut in two), which is no text",
        ),
        (
            {"category": "\udc00"},
            "'category' holds half of a surrogate pair (a character cut in two), which is no text",
        ),
    ],
)
def test_broken_rows(changes: dict[str, Any], problem: str) -> None:
    assert example(row(**changes), DOLLY) == problem


def test_missing_columns() -> None:
    assert example({"response": "2"}, DOLLY) == "no 'instruction'"
    assert example({"instruction": "x"}, DOLLY) == "no 'response'"


def test_an_empty_response_is_no_error() -> None:
    for response in ("", "  ", None):
        found = example(row(response=response), DOLLY)
        assert isinstance(found, Example)
        assert found.response == ""


def test_schemas_are_recognised() -> None:
    assert recognise(["instruction", "response", "context"], "x") is DOLLY
    assert recognise(["output", "instruction"], "x") is ALPACA
    with pytest.raises(ValueError) as refused:
        recognise(["prompt", "answer"], "my.jsonl")
    assert str(refused.value) == (
        "my.jsonl: columns answer, prompt fit no known schema "
        "(dolly: instruction, context, response; alpaca: instruction, input, output)"
    )


@pytest.fixture(scope="module")
def pythia(pythia_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(pythia_tokenizer)


def samples(pythia: Tokenizer, *rows: dict[str, Any], seq_len: int = 64, holdout: float = 0.0) -> Any:
    config = RunConfig(seq_len=seq_len, holdout=holdout)
    return tokenise([(number, example(r, DOLLY)) for number, r in enumerate(rows, start=1)], pythia, config)


@pytest.mark.shared
def test_every_token_of_a_real_row(pythia: Tokenizer) -> None:
    """Dolly's template under Pythia's tokenizer, token by token: prompt without loss, response and its end with."""
    shard = samples(pythia, row(context="Sums of small numbers.", response="The sum is 2."))
    (sample,) = shard.samples
    mask = [any(start <= i < stop for start, stop in sample.spans) for i in range(len(sample.tokens))]
    tokens = pythia.backend.convert_ids_to_tokens(sample.tokens)
    assert list(zip(sample.tokens, tokens, mask, strict=True)) == [
        (4118, "###", False),
        (41959, "ĠInstruction", False),
        (27, ":", False),
        (187, "Ċ", False),
        (4717, "Add", False),
        (337, "Ġ1", False),
        (285, "Ġand", False),
        (337, "Ġ1", False),
        (15, ".", False),
        (187, "Ċ", False),
        (187, "Ċ", False),
        (4118, "###", False),
        (25161, "ĠContext", False),
        (27, ":", False),
        (187, "Ċ", False),
        (52, "S", False),
        (7640, "ums", False),
        (273, "Ġof", False),
        (1355, "Ġsmall", False),
        (3904, "Ġnumbers", False),
        (15, ".", False),
        (187, "Ċ", False),
        (187, "Ċ", False),
        (4118, "###", False),
        (19371, "ĠResponse", False),
        (27, ":", False),
        (187, "Ċ", False),
        (510, "The", True),
        (2020, "Ġsum", True),
        (310, "Ġis", True),
        (374, "Ġ2", True),
        (15, ".", True),
        (0, "<|endoftext|>", True),
    ]
    assert (sample.row, sample.category, dict(shard.counts)) == (1, "open_qa", {})


@pytest.mark.shared
def test_a_long_response_is_cut_and_counted(pythia: Tokenizer) -> None:
    """15 prompt tokens; a window of 18 leaves three of the response and no end of text."""
    shard = samples(pythia, row(response="The sum is 2."), row(response="The sum"), seq_len=18)
    cut, whole = shard.samples
    assert (len(cut.tokens), cut.spans, cut.tokens[15:]) == (18, [(15, 18)], [510, 2020, 310])
    assert (len(whole.tokens), whole.spans, whole.tokens[15:]) == (18, [(15, 18)], [510, 2020, 0])
    assert dict(shard.counts) == {"response_cut": 1}


@pytest.mark.shared
def test_what_has_nothing_to_learn_from_is_counted(pythia: Tokenizer) -> None:
    rows = [row(response=""), row(), row(response=None), row(instruction=None), row(instruction="word " * 20)]
    shard = samples(pythia, *rows, seq_len=20)
    assert [sample.row for sample in shard.samples] == [2]
    assert dict(shard.counts) == {
        "dropped_empty_response": 2, "dropped_broken": 1, "dropped_prompt_fills_window": 1,
    }  # fmt: skip
    assert samples(pythia, row(), seq_len=15).samples == []  # 15 prompt tokens fill a window of 15
    assert samples(pythia, row(), seq_len=16).samples[0].spans == [(15, 16)]


@pytest.mark.shared
def test_copies_share_a_side_of_the_seal(pythia: Tokenizer) -> None:
    rows = [row(response=str(i % 40)) for i in range(120)]
    shard = samples(pythia, *rows, holdout=0.5)
    sides: dict[str, set[bool]] = {}
    for sample in shard.samples:
        sides.setdefault(pythia.decode(sample.tokens), set()).add(sample.sealed)
    assert len(sides) == 40
    assert {len(side) for side in sides.values()} == {1}
    assert 10 <= sum(True in side for side in sides.values()) <= 30
    first = shard.samples[0]
    assert first.document == document_id("### Instruction:\nAdd 1 and 1.\n\n### Response:\n\x000")
    assert first.sealed == is_sealed(first.document, 0.5, 0)


def compile_rows(tmp_path: Path, *rows: Any, **settings: Any) -> Corpus:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    settings = {"data": str(path), "corpora": str(tmp_path / "corpora"), "holdout": 0.0} | settings
    return Corpus.open(prepare(RunConfig(**settings)))


def test_broken_rows_stop_the_corpus_with_a_list(tmp_path: Path) -> None:
    rows = [row(), row(instruction=""), "{", row(response="\ud83d"), row()]
    with pytest.raises(ValueError) as refused:
        compile_rows(tmp_path, *rows, max_bad_rows=2)
    file = tmp_path / "rows.jsonl"
    assert str(refused.value) == (
        f"3 broken rows, 2 allowed: {file} row 2: no 'instruction'; "
        f"{file} row 3: not JSON: Expecting property name enclosed in double quotes at column 2; "
        f"{file} row 4: 'response' holds half of a surrogate pair (a character cut in two), which is no text; "
        "mend them, or pass over them with --max_bad_rows 3"
    )
    assert [p.name for p in (tmp_path / "corpora").iterdir() if p.is_dir()] == []


def test_a_long_list_of_broken_rows_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        compile_rows(tmp_path, row(), *[row(instruction="")] * 25)
    assert str(refused.value).count("row ") == 20
    assert "; and 5 more; mend them, or pass over them with --max_bad_rows 25" in str(refused.value)


def test_broken_rows_that_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = compile_rows(tmp_path, row(), row(instruction=""), row(response="3"), row(response=""), max_bad_rows=1)
    assert (corpus.n, corpus.n_trainable) == (2, 2)
    counts = corpus.meta["counts"]
    assert (counts["dropped_broken"], counts["dropped_empty_response"]) == (1, 1)
    assert corpus.meta["bad_rows"] == [f"{tmp_path / 'rows.jsonl'} row 2: no 'instruction'"]
    assert "passing over " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["", " "], "rows.jsonl: holds no rows"),
        (["{", "["], "2 broken rows, 0 allowed: "),
        ([{"prompt": "x"}], "rows.jsonl: columns prompt fit no known schema "),
        ([{"instruction": "x", "response": ""}], "no trainable sample is left (dropped empty response: 1, sealed: 0)"),
    ],
)
def test_files_without_anything_to_learn(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        compile_rows(tmp_path, *rows)
    assert message in str(refused.value)
    assert [p.name for p in (tmp_path / "corpora").iterdir() if p.is_dir()] == []


def test_what_decides_what_a_corpus_holds() -> None:
    """Steps, ranks or the learning rate share a corpus; the window, the seal and the rows do not."""
    config, source = RunConfig(seq_len=64), find("sample")
    base = corpus_settings(config, source, "t")
    assert set(base) == {
        "kind", "templates", "source", "schema", "tokenizer", "seq_len", "holdout", "holdout_seed", "max_bad_rows",
    }  # fmt: skip
    assert corpus_settings(RunConfig(seq_len=64, steps=3, seed=5, ranks_per_node=2), source, "t") == base
    for other in (RunConfig(seq_len=65), RunConfig(seq_len=64, holdout=0.1), RunConfig(seq_len=64, holdout_seed=1)):
        assert corpus_settings(other, source, "t") != base
    assert corpus_settings(config, source, "u") != base
