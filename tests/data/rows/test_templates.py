"""Templates: the exact text of each, and invalid files."""

from pathlib import Path

import pytest

from wellread.config import RunConfig
from wellread.data.mixture import readers
from wellread.data.rows import templates
from wellread.data.rows.templates import CHAT_FILE, FOLDER
from wellread.data.sets import find
from wellread.errors import UserError

FIELDS = {"instruction", "context", "category"}
INTRO = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."


@pytest.mark.parametrize(
    ("name", "context", "prompt", "lead"),
    [
        ("dolly", "", "### Instruction:\nAdd.\n\n### Response:\n", ""),
        ("dolly", "1 1", "### Instruction:\nAdd.\n\n### Context:\n1 1\n\n### Response:\n", ""),
        # stanford_alpaca/train.py, PROMPT_DICT
        ("alpaca", "", f"{INTRO}. {REQUEST}\n\n### Instruction:\nAdd.\n\n### Response:\n", ""),
        (
            "alpaca",
            "1 1",
            f"{INTRO}, paired with an input that provides further context. {REQUEST}\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n",
            "",
        ),
        ("qa", "", "Question: Add.\nAnswer:", " "),
        ("qa", "1 1", "Context: 1 1\nQuestion: Add.\nAnswer:", " "),
        ("none", "", "Add.", ""),
        ("none", "1 1", "Add.\n1 1", ""),
    ],
)
def test_exact_texts(name: str, context: str, prompt: str, lead: str) -> None:
    template = templates.load(name, FIELDS, "set")
    assert template.prompt({"instruction": "Add.", "context": context}) == (prompt, lead)


def test_the_chat_template_for_tokenizers_without_one() -> None:
    """Rendered as in transformers."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
    ]
    source = CHAT_FILE.read_text()
    ((text,), _) = render_jinja_template([messages], chat_template=source, eos_token="<eos>")
    assert text == "System: Be brief.\nUser: Hi.\nAssistant: Hello.<eos>\n"
    ((prompt,), _) = render_jinja_template([messages[:2]], chat_template=source, add_generation_prompt=True)
    assert prompt == "System: Be brief.\nUser: Hi.\nAssistant:"


def test_braces_in_a_row_are_text() -> None:
    template = templates.load("dolly", FIELDS, "set")
    fields = {"instruction": "Say {context} {instruction} {0}", "context": "{response} {instruction}"}
    assert template.prompt(fields)[0] == (
        "### Instruction:\nSay {context} {instruction} {0}\n\n### Context:\n{response} {instruction}\n\n### Response:\n"
    )


def test_a_custom_template(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{ {0} [{category}] {instruction}\n=>  {response}\n\n")
    template = templates.load(str(tmp_path / "mine.txt"), FIELDS, "set")
    assert template.prompt({"instruction": "Add.", "category": "sums"}) == ("{ {0} [sums] Add.\n=>", "  ")
    assert not template.takes_context()
    with pytest.raises(KeyError, match="category"):  # an empty text would hide that no reader reads this field
        template.prompt({"instruction": "Add."})
    (tmp_path / "mine_context.txt").write_text("{context}: {instruction} {response}")
    template = templates.load(str(tmp_path / "mine.txt"), FIELDS, "set")
    assert template.prompt({"instruction": "Add.", "context": "1 1"}) == ("1 1: Add.", " ")


def test_a_context_without_a_field_in_the_template_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{instruction} {response}")
    (tmp_path / "rows.jsonl").write_text(
        '{"instruction": "a", "response": "b", "context": ""}\n{"instruction": "a", "response": "b", "context": "c"}\n'
    )
    config = RunConfig.of(template=str(tmp_path / "mine.txt"))
    (reader,) = readers(config.data, find(str(tmp_path / "rows.jsonl")))
    good, bad = (content for _, content in reader.rows())
    assert not isinstance(good, str)
    assert bad == (
        f"{tmp_path / 'rows.jsonl'} row 2: has a context, but template '{tmp_path / 'mine.txt'}' has no field for it; "
        "add {context} to the template"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{instruction} {topic} {response}", "unknown field {topic}; set has {category}, {context}, {instruction}"),
        ("{instruction}", "must end with {response}"),
        (
            "{instruction {response}",
            "'{instruction ' is not a valid field; write {instruction}, without spaces in the braces",
        ),
        (
            "{ instruction }\n{response}",
            "'{ instruction }\\n' is not a valid field; write {instruction}, without spaces in the braces",
        ),
        ("{} {response}", "'{}' is not a valid field; write {instruction}, without spaces in the braces"),
        ("A: {response}", "contains no field of set; write {instruction} where the instruction belongs"),
        ("{response} {instruction}", "must end with {response}"),
    ],
)
def test_invalid_templates(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError) as refused:
        templates.load(str(tmp_path / "mine.txt"), FIELDS, "set")
    assert str(refused.value) == f"template {tmp_path / 'mine.txt'}: {message}"


def test_unknown_names() -> None:
    for name in ("nope", "no/file.txt"):
        with pytest.raises(UserError) as refused:
            templates.load(name, FIELDS, "set")
        assert str(refused.value) == (
            f"--template {name}: not a known template (alpaca, dolly, none, qa, chat) or a .txt file"
        )
    assert {path.name for path in FOLDER.iterdir()} == {
        "alpaca.txt", "alpaca_context.txt", "chat.jinja", "dolly.txt", "dolly_context.txt", "none.txt",
        "none_context.txt", "qa.txt", "qa_context.txt",
    }  # fmt: skip


def test_a_byte_order_mark_is_removed(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\ufeffQ: {instruction}\nA:{response}", encoding="utf-8")
    template = templates.load(str(tmp_path / "own.txt"), FIELDS, "set")
    assert template.prompt({"instruction": "Add."})[0] == "Q: Add.\nA:"
    assert template.texts == ("Q: {instruction}\nA:{response}",)
