"""Instruction rows: parsing by each schema, malformed rows, and exactly which tokens carry loss."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.marked import Item
from finetune.prepare import prepare
from finetune.tokenize import tokenize
from wellread.config import RunConfig
from wellread.corpus.holdout import document_id, is_sealed
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.mixture import corpus_settings
from wellread.data.rows import templates
from wellread.data.rows.content import Dialogue, Turn, without_prefix
from wellread.data.rows.instruct import SCHEMAS, Example, dialogues, example, recognize
from wellread.data.rows.templates import Template
from wellread.data.sets import find
from wellread.data.sources.source import Row, Source
from wellread.errors import UserError

SOURCE = Source(name="set", hub="x/set")


def row(**changes: Any) -> dict[str, Any]:
    return {"instruction": "Add 1 and 1.", "context": "", "response": "2", "category": "open_qa"} | changes


def read(fields: dict[str, Any], schema: str = "dolly", source: Source = SOURCE) -> list[Dialogue] | str:
    return dialogues(Row(1, fields), SCHEMAS[schema], source)


def template(name: str = "dolly") -> Template:
    return templates.load(name, SCHEMAS["dolly"].fields, "set")


def examples(fields: dict[str, Any], schema: str = "dolly", name: str | None = None) -> list[Example]:
    """The samples of one row, with a template applied."""
    parsed = read(fields, schema)
    assert isinstance(parsed, list), parsed
    results = [example(dialogue, template(name or SCHEMAS[schema].template)) for dialogue in parsed]
    assert all(isinstance(each, Example) for each in results), results
    return [each for each in results if isinstance(each, Example)]


def test_dolly() -> None:
    (sample,) = examples(row())
    assert sample == Example(
        (("### Instruction:\nAdd 1 and 1.\n\n### Response:\n", "2"),),
        "### Instruction:\nAdd 1 and 1.\n\n### Response:\n\x002",
        "open_qa",
    )


@pytest.mark.parametrize("context", ["", " \n", None])
def test_an_empty_context_is_the_same_as_none(context: str | None) -> None:
    samples = examples(row(context=context))
    assert "Context" not in samples[0].turns[0][0]
    without = row()
    del without["context"]
    assert examples(without) == samples


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"instruction": None}, "no 'instruction'"),
        ({"instruction": " \n"}, "'instruction' is empty"),
        ({"instruction": 7}, "'instruction' is int, not text"),
        ({"response": 7}, "'response' is int, not text"),
        ({"response": ["a"]}, "'response' is list, not text"),
        ({"context": {}}, "'context' is dict, not text"),
        (
            {"response": "\ud83d"},
            "'response' contains half of a surrogate pair (an incomplete character)",
        ),
        (
            {"category": "\udc00"},
            "'category' contains half of a surrogate pair (an incomplete character)",
        ),
    ],
)
def test_malformed_rows(changes: dict[str, Any], problem: str) -> None:
    assert read(row(**changes)) == problem


def test_missing_columns() -> None:
    assert read({"response": "2"}) == "no 'instruction'"
    assert read({"instruction": "x"}) == "no 'response'"


def test_an_empty_response_is_not_an_error() -> None:
    for response in ("", "  ", None):
        assert examples(row(response=response))[0].turns[0][1] == ""


def test_numbers_may_be_categories() -> None:
    assert examples(row(category=7))[0].category == "7"


INTRO = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{INTRO}. {REQUEST} ### Instruction: Add 1\nand 1.", ("Add 1\nand 1.", "")),  # as in filtered Evol sets
        (f"{INTRO}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:\n", ("Add.", "")),
        (f"{INTRO}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:", ("Add.", "")),
        (
            f"{INTRO}, paired with an input that provides further context. {REQUEST}\n\n### Instruction:\nAdd.\n\n"
            "### Input:\n1 1\n\n### Response:\n",
            ("Add.", "1 1"),
        ),
        (f"{INTRO}. {REQUEST} ### Instruction: Explain ### Input: to me", ("Explain ### Input: to me", "")),
        (f"{INTRO}. What does that mean?", None),
        ("Add 1 and 1.", None),
    ],
)
def test_the_prefix_of_alpaca_is_removed(text: str, expected: tuple[str, str] | None) -> None:
    assert without_prefix(text) == expected


def test_an_existing_prefix_is_not_added_twice() -> None:
    fields = {"instruction": f"{INTRO}. {REQUEST} ### Instruction: Add 1 and 1.", "output": "2"}
    (sample,) = examples(fields, "alpaca")
    assert sample.prefixed
    plain = {"instruction": "Add 1 and 1.", "output": "2"}
    assert sample.turns == examples(plain, "alpaca")[0].turns == (
        (f"{INTRO}. {REQUEST}\n\n### Instruction:\nAdd 1 and 1.\n\n### Response:\n", "2"),
    )  # fmt: skip
    chat = {"conversations": [{"from": "human", "value": fields["instruction"]}, {"from": "gpt", "value": "2"}]}
    assert examples(chat, "conversations", "alpaca")[0].turns == sample.turns
    assert examples(chat, "conversations")[0].turns == (("Add 1 and 1.", "2"),)


PROMPT = (
    f"{INTRO}, paired with an input that provides further context. {REQUEST}\n\n### Instruction:\nAdd.\n\n"
    "### Input:\n1 1\n\n### Response:"
)


@pytest.mark.parametrize("column", [None, "", " ", "\n", "1 1", "1 1\n"])
def test_the_input_of_an_existing_prompt_is_the_context(column: str | None) -> None:
    (sample,) = examples({"instruction": PROMPT, "input": column, "output": "2"}, "alpaca")
    assert sample.turns == examples({"instruction": "Add.", "input": "1 1", "output": "2"}, "alpaca")[0].turns


def test_a_column_next_to_an_existing_prompt_without_input_is_the_context() -> None:
    instruction = f"{INTRO}. {REQUEST} ### Instruction: Add."
    (sample,) = examples({"instruction": instruction, "input": "1 1", "output": "2"}, "alpaca")
    assert sample.turns == examples({"instruction": "Add.", "input": "1 1", "output": "2"}, "alpaca")[0].turns


def test_an_existing_prompt_with_another_input_than_the_column_is_malformed() -> None:
    error = read({"instruction": PROMPT, "input": "2 2", "output": "2"}, "alpaca")
    assert error == "'instruction' contains a prompt with another input than the row; remove one"


CHAT = [{"role": "user", "content": "Add 1 and 1."}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("column", [None, "", " ", "Be brief. "])
def test_a_column_without_content_does_not_replace_a_system_message(column: str | None) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    (sample,) = examples({"messages": chat, "system": column}, "messages")
    assert sample.system == "Be brief."
    (later,) = examples({"messages": CHAT, "system": column, "history": chat}, "messages")
    assert (later.system, len(later.turns)) == ("Be brief.", 2)


def test_two_different_system_messages_are_malformed() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    error = read({"messages": chat, "system": "Be long."}, "messages")
    assert error == "has two different system messages, one in a column and one in the chat; remove one"
    error = read({"messages": CHAT, "system": "Be long.", "history": chat}, "messages")
    assert error == "'history' has another system message than the row; remove one"


def test_the_file_names_the_subset_of_hc3_if_its_column_has_no_content() -> None:
    source = Source(name="hc3", paths=(Path("finance.jsonl"),), subsets=("finance",))
    for subset in (None, "", " "):
        parsed = read(HC3 | {"source": subset}, "hc3", source)
        assert isinstance(parsed, list)
        assert {dialogue.category for dialogue in parsed} == {"finance"}


HC3 = {"question": "Why?", "human_answers": ["So.", "It is so. "], "chatgpt_answers": ["As a model, so."]}


def test_each_answer_of_hc3_is_a_sample_of_one_document() -> None:
    samples = examples(HC3, "hc3")
    prompt = "Question: Why?\nAnswer:"
    assert [(each.turns, each.author) for each in samples] == [
        (((prompt, " So."),), "human"),
        (((prompt, " It is so."),), "human"),
        (((prompt, " As a model, so."),), "chatgpt"),
    ]
    documents = {each.document for each in samples}
    assert documents == {f"{prompt}\x00So.\x00It is so.\x00As a model, so."}
    for answers, n in (("human", 2), ("chatgpt", 1)):
        some = read(HC3, "hc3", Source(name="hc3", answers=answers))
        assert isinstance(some, list)
        assert [dialogue.author for dialogue in some] == [answers] * n
        texts = [example(dialogue, template("qa")) for dialogue in some]
        assert {each.document for each in texts if isinstance(each, Example)} == documents  # all are sealed, or none


def test_subsets_of_hc3() -> None:
    finance, both = HC3 | {"source": "finance"}, Source(name="hc3", subsets=("finance", "open_qa"))
    assert len(read(finance, "hc3", both)) == 3
    assert read(HC3 | {"source": "medicine"}, "hc3", both) == []
    by_file_name = Source(name="hc3", subsets=("open_qa",), paths=(Path("some/open_qa.jsonl"),))
    (first, *_) = read(HC3, "hc3", by_file_name)
    assert isinstance(first, Dialogue)
    assert first.category == "open_qa"
    assert read(HC3, "hc3", Source(name="hc3", subsets=("open_qa",), paths=(Path("renamed.jsonl"),))) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": " "}, "no 'question'"),
        ({"human_answers": "So."}, "'human_answers' is str, not a list of texts"),
        ({"chatgpt_answers": ["So.", 3]}, "'chatgpt_answers' is a list with other values, not a list of texts"),
    ],
)
def test_malformed_rows_of_hc3(changes: dict[str, Any], problem: str) -> None:
    assert read(HC3 | changes, "hc3") == problem


def test_messages_become_turns() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Good."},
        {"role": "assistant", "content": "Bye."},
        {"role": "user", "content": "Wait!"},
    ]
    extra = {"context": "", "category": ""}
    first = Turn({"instruction": "Hi.\n\nWho is there?", **extra}, "Me.", joined=1)
    assert read({"messages": messages}, "messages") == [
        Dialogue((first, Turn({"instruction": "Good.", **extra}, "Bye.")), "Be brief.", trailing=1)
    ]
    (sample,) = examples({"messages": messages}, "messages", "qa")
    assert sample.turns == (
        ("Be brief.\n\nQuestion: Hi.\n\nWho is there?\nAnswer:", " Me."),
        ("Question: Good.\nAnswer:", " Bye."),
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "no 'messages'"),
        ("Hi.", "'messages' is str, not a list"),
        ([{"role": "user", "content": "Hi."}], "'messages' contains no message of the assistant"),
        (["Hi."], "message 1 of 'messages' is str, not an object"),
        (
            [{"role": "tool", "content": "1"}],
            "message 1 of 'messages' has role 'tool', not one of system, user, assistant, human, gpt",
        ),
        ([{"role": "user"}], "message 1 of 'messages' has no text"),
        ([{"role": "user", "content": [1]}], "message 1 of 'messages' contains a list with int, not text"),
    ],
)
def test_malformed_messages(messages: Any, problem: str) -> None:
    assert read({"messages": messages}, "messages") == problem


def test_schemas_are_recognized() -> None:
    for columns, name in (
        (["instruction", "response", "context"], "dolly"),
        (["output", "instruction"], "alpaca"),
        (["question", "human_answers", "chatgpt_answers", "source"], "hc3"),
        (["id", "conversations", "score"], "conversations"),
        (["messages", "prompt"], "messages"),
        (["prompt", "completion"], "prompt"),
    ):
        assert recognize(columns, "x") is SCHEMAS[name]


@pytest.fixture(scope="module")
def pythia(pythia_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(pythia_tokenizer)


def samples(pythia: Tokenizer, *rows: dict[str, Any], seq_len: int = 64, holdout: float = 0.0) -> Any:
    config = RunConfig.of(seq_len=seq_len, holdout=holdout)
    items = []
    for number, fields in enumerate(rows, start=1):
        items += [Item(0, number, None)] if isinstance(read(fields), str) else [
            Item(0, number, each) for each in examples(fields)
        ]  # fmt: skip
    return tokenize(items, pythia, config.data)


@pytest.mark.shared
def test_every_token_of_a_real_row(pythia: Tokenizer) -> None:
    """Dolly's template with Pythia's tokenizer: the prompt carries no loss, response and EOS token do."""
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
def test_a_long_response_is_truncated_and_counted(pythia: Tokenizer) -> None:
    """With 15 prompt tokens, a length of 18 leaves three tokens of the response and no EOS token."""
    shard = samples(pythia, row(response="The sum is 2."), row(response="The sum"), seq_len=18)
    truncated, complete = shard.samples
    assert (len(truncated.tokens), truncated.spans, truncated.tokens[15:]) == (18, [(15, 18)], [510, 2020, 310])
    assert (len(complete.tokens), complete.spans, complete.tokens[15:]) == (18, [(15, 18)], [510, 2020, 0])
    assert dict(shard.counts) == {"response_cut": 1}


@pytest.mark.shared
def test_samples_without_targets_are_dropped_and_counted(pythia: Tokenizer) -> None:
    rows = [row(response=""), row(), row(response=None), row(instruction=None), row(instruction="word " * 20)]
    shard = samples(pythia, *rows, seq_len=20)
    assert [sample.row for sample in shard.samples] == [2]
    assert dict(shard.counts) == {
        "dropped_empty_response": 2, "dropped_broken": 1, "dropped_prompt_fills_window": 1,
    }  # fmt: skip
    assert samples(pythia, row(), seq_len=15).samples == []  # 15 prompt tokens fill a sample of 15
    assert samples(pythia, row(), seq_len=16).samples[0].spans == [(15, 16)]


@pytest.mark.shared
def test_copies_are_all_sealed_or_all_trainable(pythia: Tokenizer) -> None:
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
    return Corpus.open(prepare(RunConfig.of(**settings)))


def test_malformed_rows_stop_compilation_and_are_listed(tmp_path: Path) -> None:
    rows = [row(), row(instruction=""), "{", row(response="\ud83d"), row()]
    with pytest.raises(UserError) as refused:
        compile_rows(tmp_path, *rows, max_bad_rows=2)
    file = tmp_path / "rows.jsonl"
    assert str(refused.value) == (
        f"3 malformed rows, 2 allowed: {file} row 2: 'instruction' is empty; "
        f"{file} row 3: not JSON: Expecting property name enclosed in double quotes at column 2; "
        f"{file} row 4: 'response' contains half of a surrogate pair (an incomplete character); "
        "fix them, or skip them with --max_bad_rows 3"
    )
    assert [p.name for p in (tmp_path / "corpora").glob("*") if p.is_dir()] == []


def test_a_long_list_of_malformed_rows_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        compile_rows(tmp_path, row(), *[row(instruction="")] * 25)
    assert str(refused.value).count("row ") == 20
    assert "; and 5 more; fix them, or skip them with --max_bad_rows 25" in str(refused.value)


def test_allowed_malformed_rows_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = compile_rows(tmp_path, row(), row(instruction=""), row(response="3"), row(response=""), max_bad_rows=1)
    assert (corpus.n, corpus.n_trainable) == (2, 2)
    counts = corpus.meta["counts"]
    assert (counts["dropped_broken"], counts["dropped_empty_response"]) == (1, 1)
    assert corpus.meta["bad_rows"] == [f"{tmp_path / 'rows.jsonl'} row 2: 'instruction' is empty"]
    assert "skipping " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["", " "], "rows.jsonl: contains no rows"),
        (["{", "["], "2 malformed rows, 0 allowed: "),
        ([{"prompt": "x"}], "rows.jsonl: columns prompt match no known schema "),
        ([{" prompt": "x", "\ufeffid": 1}], r"rows.jsonl: columns ' prompt', '\ufeffid' match no known schema "),
        ([{"instruction": "x", "response": ""}], "no trainable sample is left (dropped empty response: 1, sealed: 0)"),
        (
            [{"instruction": "word " * 400, "response": "x"}],
            "(dropped prompt fills window: 1, sealed: 0); raise --seq_len",
        ),
    ],
)
def test_files_without_usable_samples(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        compile_rows(tmp_path, *rows)
    assert message in str(refused.value)
    assert [p.name for p in (tmp_path / "corpora").glob("*") if p.is_dir()] == []


def test_settings_that_identify_a_corpus() -> None:
    """Runs that differ in steps, ranks or learning rate share a corpus; other lengths, holdouts or rows do not."""
    config, source = RunConfig.of(seq_len=64), find("sample")
    base = corpus_settings(config.data, source, "t")
    assert set(base) == {
        "version", "rows", "sets", "tokenizer", "seq_len", "loss_on", "holdout", "holdout_seed", "max_bad_rows",
    }  # fmt: skip
    assert corpus_settings(RunConfig.of(seq_len=64, steps=3, seed=5, ranks_per_node=2).data, source, "t") == base
    for other in (RunConfig.of(seq_len=65), RunConfig.of(seq_len=64, holdout=0.1),
                  RunConfig.of(seq_len=64, holdout_seed=1),
                  RunConfig.of(seq_len=64, template="alpaca"), RunConfig.of(seq_len=64, loss_on="all")):  # fmt: skip
        assert corpus_settings(other.data, source, "t") != base
    assert corpus_settings(config.data, source, "u") != base
