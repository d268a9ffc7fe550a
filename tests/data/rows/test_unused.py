"""Columns: what means something known is used, the rest is refused by name or ignored by request, and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.mixture import corpus_settings, readers
from wellread.data.rows.instruct import Example
from wellread.data.sets import find
from wellread.errors import UserError

PAIR = {"instruction": "Sum up.", "response": "Nine."}
CHAT = {"conversations": [{"from": "human", "value": "Name a bird."}, {"from": "gpt", "value": "A wren."}]}
NOTE = "The bus leaves at nine."


def write(folder: Path, *rows: dict[str, Any], yaml: str = "") -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not yaml:
        return str(file)
    (folder / "rows.yaml").write_text(f"file: rows.jsonl\n{yaml}\n", encoding="utf-8")
    return str(folder / "rows.yaml")


def samples(data: str, template: str | None = None) -> list[Example | str]:
    """The samples of all rows; for a malformed row its error."""
    (reader,) = readers(RunConfig.of(data=data, template=template).data, find(data))
    results: list[Example | str] = []
    for _, row in reader.rows():
        results += [row] if isinstance(row, str) else [each for each in row if isinstance(each, Example)]
    reader.unused.check("rows")
    return results


def sample(data: str, template: str | None = None) -> Example:
    (only,) = samples(data, template)
    assert isinstance(only, Example), only
    return only


@pytest.mark.parametrize("response", ["response", "output"])
@pytest.mark.parametrize("context", ["context", "input"])
def test_input_and_context_mean_the_same(tmp_path: Path, response: str, context: str) -> None:
    both = [sample(write(tmp_path, {"instruction": "Sum up.", name: NOTE, response: "Nine."})) for name in (context,)]
    assert NOTE in both[0].turns[0][0]
    assert both[0].turns == sample(write(tmp_path, {"instruction": "Sum up.", "input": NOTE, response: "Nine."})).turns


@pytest.mark.parametrize("context", ["context", "input"])
def test_a_context_next_to_prompt_and_completion(tmp_path: Path, context: str) -> None:
    data = write(tmp_path, {"prompt": "Sum up.", context: NOTE, "completion": "Nine."})
    assert sample(data, "chat").turns == ((f"Sum up.\n\n{NOTE}", "Nine."),)
    assert NOTE in sample(data).turns[0][0]
    (tmp_path / "own.txt").write_text("{instruction}\n{response}", encoding="utf-8")
    with pytest.raises(UserError, match=f"nothing reads the content of column '{context}' "):
        samples(data, str(tmp_path / "own.txt"))


def test_two_columns_with_the_same_meaning(tmp_path: Path) -> None:
    assert NOTE in sample(write(tmp_path, PAIR | {"input": NOTE, "context": ""})).turns[0][0]
    assert NOTE in sample(write(tmp_path, PAIR | {"input": NOTE, "context": NOTE})).turns[0][0]
    (problem,) = samples(write(tmp_path, PAIR | {"input": NOTE, "context": "Else."}))
    assert "'context' and 'input' mean the same but differ" in str(problem)


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_system_messages_in_a_column(tmp_path: Path, column: str) -> None:
    chat = sample(write(tmp_path, CHAT | {column: "Know birds."}))
    assert (chat.system, chat.turns) == ("Know birds.", (("Name a bird.", "A wren."),))
    assert sample(write(tmp_path, PAIR | {column: "Be brief."})).turns[0][0].startswith("Be brief.\n\n### Instruction")
    messages = [{"from": "system", "value": "Else."}, *CHAT["conversations"]]
    (problem,) = samples(write(tmp_path, {"conversations": messages, column: "Know birds."}))
    assert "two different system messages" in str(problem)


def test_history_is_the_earlier_turns(tmp_path: Path) -> None:
    row = {"instruction": "And a fish?", "output": "A cod.", "system": "Be brief.", "history": [["A bird?", "A wren."]]}
    assert sample(write(tmp_path, row), "chat").turns == (("A bird?", "A wren."), ("And a fish?", "A cod."))
    first, second = sample(write(tmp_path, row)).turns
    assert "Be brief." in first[0]
    assert ("A bird?" in first[0], first[1], second[1]) == (True, "A wren.", "A cod.")
    assert sample(write(tmp_path, CHAT | {"history": [["Hi.", "Ho."]]})).turns[0] == ("Hi.", "Ho.")


@pytest.mark.parametrize("row", [PAIR, CHAT, {"question": "Why?", "human_answers": ["So."], "chatgpt_answers": []}])
@pytest.mark.parametrize("column", ["tools", "images", "id", "weight", "whatever"])
def test_other_columns_with_content_are_refused_by_name(tmp_path: Path, row: dict[str, Any], column: str) -> None:
    rows = [row | {column: None}] * 120 + [row | {column: 0}, row | {column: [{"a": 1}]}]  # beyond the rows looked at
    with pytest.raises(UserError) as caught:
        samples(write(tmp_path, *rows))
    assert str(caught.value) == (
        f"rows: nothing reads the content of column '{column}' (2 rows); remove it, "
        f"or describe the data set in YAML with columns: or ignore: [{column}] (docs/data.md)"
    )
    assert len(samples(write(tmp_path, *rows, yaml=f"ignore: [{column}]"))) == 122
    assert len(samples(write(tmp_path, *rows[:120]))) == 120


def test_a_declared_column_that_the_template_does_not_name(tmp_path: Path) -> None:
    columns = "columns: {instruction: instruction, response: response, topic: t}"
    data = write(tmp_path, PAIR | {"t": "Buses"}, yaml=columns)
    with pytest.raises(UserError, match="column 't'"):
        samples(data)
    (tmp_path / "own.txt").write_text("{topic}: {instruction}\n{response}", encoding="utf-8")
    assert sample(data, str(tmp_path / "own.txt")).turns == (("Buses: Sum up.\n", "Nine."),)


def test_a_template_names_columns_next_to_messages(tmp_path: Path) -> None:
    """Each turn has them, also earlier ones; what no template names, or has no place next to messages, is refused."""
    row = CHAT | {"t": "Birds", "category": "qa", "history": [["Hi.", "Ho."]], "level": 3}
    yaml = "columns: {messages: conversations, topic: t, level: level}"
    (tmp_path / "own.txt").write_text("{topic}/{category}/{level}: {instruction}\n{response}", encoding="utf-8")
    template = str(tmp_path / "own.txt")
    assert sample(write(tmp_path, row, yaml=yaml), template).turns == (
        ("Birds/qa/3: Hi.\n", "Ho."),
        ("Birds/qa/3: Name a bird.\n", "A wren."),
    )
    assert sample(write(tmp_path, {**row, "t": None}, yaml=yaml), template).turns[0][0] == "/qa/3: Hi.\n"
    (problem,) = samples(write(tmp_path, row | {"t": "\ud83d"}, yaml=yaml), template)
    assert "'t' contains half of a surrogate pair" in str(problem)
    with pytest.raises(UserError, match=r"nothing reads the content of columns 'level'.*, 't' "):
        samples(write(tmp_path, row, yaml=yaml), "qa")
    (tmp_path / "own.txt").write_text("{context}{instruction}\n{response}", encoding="utf-8")
    with pytest.raises(UserError, match="nothing reads the content of column 't' "):
        samples(write(tmp_path, CHAT | {"t": "Birds"}, yaml="columns: {messages: conversations, context: t}"), template)


@pytest.mark.parametrize("row", [CHAT, {"question": "Why?", "human_answers": ["So."], "chatgpt_answers": []}])
def test_every_field_that_a_template_may_name_has_a_value(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "own.txt").write_text("[{category}{context}] {instruction}\n{response}", encoding="utf-8")
    category = "source" if "question" in row else "category"
    (example,) = samples(write(tmp_path, row | {category: "qa"}), str(tmp_path / "own.txt"))
    assert isinstance(example, Example)
    assert example.turns[0][0].startswith("[qa] ")


def test_columns_next_to_messages_are_another_corpus(tmp_path: Path) -> None:
    """Older versions compiled empty fields; other corpora keep their key."""
    (tmp_path / "own.txt").write_text("{category}: {instruction}\n{response}", encoding="utf-8")
    for row, template, expected in (
        (CHAT, str(tmp_path / "own.txt"), {"fields_of_chats": 2}),
        (CHAT, "qa", {}),
        (CHAT, "chat", {}),
        (PAIR, str(tmp_path / "own.txt"), {}),
    ):
        data = write(tmp_path, row)
        settings = corpus_settings(RunConfig.of(data=data, template=template).data, find(data), "t")
        assert {key: value for key, value in settings["sets"][0].items() if key == "fields_of_chats"} == expected


@pytest.mark.parametrize("value", ["id", "{a: b}", "[1]"])
def test_ignore_is_a_list_of_names(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"ignore: expected a list of columns, e\.g\. ignore: \[id, score\]"):
        find(write(tmp_path, PAIR, yaml=f"ignore: {value}"))


@pytest.mark.parametrize("name", ["dolly", "qa", "chat", "alpaca"])
def test_the_first_line_of_an_answer_keeps_its_indentation(tmp_path: Path, name: str) -> None:
    answer = "\n \n    c = a + b\n    return c\n"
    response = sample(write(tmp_path, PAIR | {"response": answer}), name).turns[0][1]
    assert response == " " * (name == "qa") + "    c = a + b\n    return c"


def compiled(tmp_path: Path, data: str, **settings: Any) -> Corpus:
    settings = {"seq_len": 256, "holdout": 0.0, "model": "tiny", "corpora": str(tmp_path / "corpora")} | settings
    return Corpus.open(prepare(RunConfig.of(data=data, **settings)))


def scored(corpus: Corpus) -> str:
    """Text of the tokens with loss of sample 0."""
    return str(Tokenizer.load(corpus.tokenizer).decode(corpus.tokens(0)[corpus.targets(0)].tolist()))


@pytest.mark.parametrize("template", ["chat", "qa"])
def test_an_answer_with_weight_0_carries_no_loss(
    tmp_path: Path, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user, ask = {"role": "user", "content": "Name a bird."}, {"role": "user", "content": "Bye."}
    answers = [{"role": "assistant", "content": "A brick.", "weight": 0}, {"role": "assistant", "content": "A wren."}]
    write(tmp_path, {"messages": [user, answers[0], user, answers[1], ask]}, {"messages": [user, answers[0]]})
    corpus = compiled(tmp_path, str(tmp_path / "rows.jsonl"), template=template)
    assert corpus.n == 1
    assert ("brick" in scored(corpus), "wren" in scored(corpus)) == (False, True)
    lines = capsys.readouterr().out.splitlines()
    assert "messages after the last answer, left out: 1" in lines
    assert "answers with weight 0, without loss: 1" in lines
    assert "left out, all answers have weight 0: 1" in lines
    assert "nothing was truncated or left out" not in lines
    everything = compiled(tmp_path, str(tmp_path / "rows.jsonl"), template=template, loss_on="all")
    assert ("brick" in scored(everything), scored(everything).count("Name a bird.")) == (False, 2)


def test_ignored_columns_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PAIR | {"id": 1}, PAIR | {"id": None}, PAIR | {"id": "b"}]
    with pytest.raises(UserError, match="column 'id'"):
        compiled(tmp_path, write(tmp_path, *rows))
    compiled(tmp_path, write(tmp_path, *rows, yaml="ignore: [id]"))
    lines = capsys.readouterr().out.splitlines()
    assert "column 'id' of rows is ignored: 2 rows" in lines
    assert "nothing was truncated or left out" not in lines
    compiled(tmp_path, write(tmp_path, PAIR))
    assert "nothing was truncated or left out" in capsys.readouterr().out.splitlines()
