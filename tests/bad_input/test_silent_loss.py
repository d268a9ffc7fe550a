"""Content that would be lost, moved or changed without a word: used, refused by name, or counted.

Each row of the table compiles one small file with the command of a user.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat_models import config, write_models
from support.made_once import made_once

User = dict[str, Any]
TEXT = "Once there was a dog that liked to run in the park with its friends, every day of the year. "


def user(content: Any, **keys: Any) -> User:
    return {"role": "user", "content": content} | keys


def system(content: str) -> User:
    return {"role": "system", "content": content}


def bot(content: Any, **keys: Any) -> User:
    return {"role": "assistant", "content": content} | keys


def chat(*messages: User, **columns: Any) -> list[dict[str, Any]]:
    return [{"messages": list(messages)} | columns]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "chat-models", write_models)


@pytest.fixture
def prepared(models: Path, tmp_path: Path, in_process: Any) -> Callable[..., tuple[int, str, str]]:
    """Write FILES and compile the first; return the exit code, stdout and stderr, in which DIR is their folder."""

    def run(files: dict[str, Any], model: str, *flags: str) -> tuple[int, str, str]:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else written(name, content))
        data = [flag for flag in flags if flag.startswith("--data")] or [f"--data=DIR/{next(iter(files))}"]
        flags = (*(flag for flag in flags if not flag.startswith("--data")), *data)
        usual = ["--holdout", "0", "--seq_len", "256", "--show", "1", "--corpora", tmp_path / "corpora"]
        replaced = [flag.replace("DIR", str(tmp_path)) for flag in flags]
        result = in_process("finetune", "prepare", "--model", models / model, *usual, *replaced)
        return result.returncode, *(text.replace(str(tmp_path), "DIR") for text in (result.stdout, result.stderr))

    return run


def written(name: str, content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode()
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return json.dumps(content).encode()


COMPLETE = "nothing was truncated or left out"
SEEN: dict[str, tuple[dict[str, Any], str, tuple[str, ...], list[str]]] = {
    "input next to instruction and response": (
        {"a.jsonl": [{"instruction": "Sum up.", "input": "The bus leaves at nine.", "response": "At nine."}]},
        "chatml", (), ["The bus leaves at nine.", COMPLETE],
    ),
    "context next to prompt and completion": (
        {"a.jsonl": [{"prompt": "Sum up.", "context": "The bus leaves at nine.", "completion": "At nine."}]},
        "chatml", (), ["The bus leaves at nine.", COMPLETE],
    ),
    "system and history of LLaMA-Factory": (
        {"a.jsonl": [{"instruction": "And a fish?", "output": "A cod.", "system": "Be brief.",
                      "history": [["Name a bird.", "A wren."]]}]},
        "chatml", ("--template=chat",),
        ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a bird.", "⟦A wren.<|im_end|>⟧",
         "⟦A cod.<|im_end|>⟧", COMPLETE],
    ),
    "a system column that a template names": (
        {"a.yaml": "file: a.jsonl\ncolumns: {instruction: q, response: a, system: s}\ntemplate: t.txt\n",
         "a.jsonl": [{"q": "Name a bird.", "a": "A wren.", "s": "Be a pirate."}],
         "t.txt": "S {system}\nQ {instruction}\nA {response}"},
        "chatml", (), ["S Be a pirate.\nQ Name a bird.\nA⟦ A wren."],
    ),
    "an answer with weight 0": (
        {"a.jsonl": chat(user("Name a bird."), bot("A brick.", weight=0), user("No."), bot("A wren."))},
        "chatml", (), ["\nA brick.<|im_end|>", "⟦A wren.<|im_end|>⟧", "answers with weight 0, without loss: 1"],
    ),
    "weight 0 in a template without an end of turn": (
        {"a.jsonl": chat(user("Name a bird."), bot("A brick.", train=False), user("No."), bot("A wren."))},
        "glm", (), ["\nA brick.<|user|>", "⟦A wren.<|endoftext|>⟧"],
    ),
    "parts of text": (
        {"a.jsonl": chat(user([{"type": "text", "text": "Name "}, {"text": "a bird."}]), bot("A tit."))},
        "chatml", (), ["user\nName a bird.<|im_end|>", COMPLETE],
    ),
    "a key that the user ignores": (
        {"a.yaml": "file: a.jsonl\nignore: [thinking]\n",
         "a.jsonl": chat(user("Name a bird."), bot("A wren.", thinking="Hm."))},
        "chatml", (), ["column 'messages.thinking' of a is ignored: 1 row\n"],
    ),
    "messages that follow the last answer, and joined ones": (
        {"a.jsonl": chat(user("Name a bird."), user("Briefly."), bot("A wren."), user("Thanks."))},
        "chatml", (), ["messages after the last answer, left out: 1",
                       "messages that follow one of the same role, joined to it: 1"],
    ),
    "a system message in mid-conversation": (
        {"a.jsonl": chat(system("Be brief."), user("Name a bird."), bot("A wren."), system("Now in capitals."),
                         user("Name a fish."), bot("COD."))},
        "chatml", (),
        ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n"
         "⟦A wren.<|im_end|>⟧\n<|im_start|>system\nNow in capitals.<|im_end|>\n<|im_start|>user\nName a fish.",
         COMPLETE],
    ),
    "a system message after the first question": (
        {"a.jsonl": chat(user("Name a bird."), system("In capitals."), bot("A WREN."))},
        "chatml", (), ["user\nName a bird.<|im_end|>\n<|im_start|>system\nIn capitals.<|im_end|>", COMPLETE],
    ),
    "an answer that only the next role ends": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."), user("And a fish?"), bot("A cod."))},
        "glm", (), ["⟦A wren.<|user|>⟧", "⟦A cod.<|endoftext|>⟧"],
    ),
    "indentation of prompt and answer": (
        {"a.jsonl": [{"prompt": "    a = 1\n    b = 2\n", "completion": "\n    c = a + b\n    return c\n"}]},
        "chatml", ("--template=chat",),
        ["user\n    a = 1\n    b = 2<|im_end|>", "⟦    c = a + b\n    return c<|im_end|>⟧"],
    ),
    "indentation that a chat template removes": (
        {"a.jsonl": chat(user(" Go on."), bot("    c = a + b\n    return c\n")) + chat(user("Go on."), bot("\tb"))},
        "trimming", (),
        ["⟦c = a + b\n    return c<|im_end|>⟧",
         "answers that lose whitespace at their start in the chat template: 2; first, DIR/a.jsonl row 1: "
         "'    c = a + b\\n    return c' becomes 'c = a + b\\n    return c'\n",
         "other messages that lose whitespace at their start in the chat template: 1; first, DIR/a.jsonl row 1: "
         "' Go on.' becomes 'Go on.'\n"],
    ),
    "nothing that a chat template could remove": (
        {"a.jsonl": chat(user("Go on."), bot("c = a + b\n    return c"))}, "trimming", (), [COMPLETE],
    ),
    "whitespace that a chat template keeps": (
        {"a.jsonl": chat(user(" Go on."), bot("    return c"), user("\t?"), bot(" d"))}, "chatml", (),
        ["user\n Go on.", "⟦    return c<|im_end|>⟧", "user\n\t?", "⟦ d<|im_end|>⟧", COMPLETE],
    ),
    "a long line that a chat template changes": (
        {"a.jsonl": chat(user("Go on."), bot("\t" + "c = a + b; " * 20 + "d"))}, "trimming", (),
        [r"row 1: '\tc = a + b; c = a +  …  a + b; c = a + b; d' becomes 'c = a + b; c = a + b …  a + b; c = a"],
    ),
    "what a chat template writes before an answer": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."))}, "unprompted", (),
        ["⟦<|im_start|>assistant\nA wren.<|im_end|>⟧",
         "answers before which the chat template writes text that is learned, too: 1; first, DIR/a.jsonl row 1: "
         "'A wren.' becomes '<|im_start|>assistant\\nA wren.'\n"],
    ),
    "a byte-order mark in a list": (
        {"a.json": "\ufeff" + json.dumps([{"instruction": "Name a bird.", "response": "A wren."}])},
        "base", (), ["⟦A wren.<|endoftext|>⟧"],
    ),
    "a byte-order mark in a template": (
        {"a.jsonl": [{"instruction": "Name a bird.", "response": "A wren."}],
         "t.txt": "\ufeffQ {instruction} {response}"},
        "base", ("--template=DIR/t.txt",), ["tokens, 4 with loss\nQ Name a bird.⟦ A wren."],
    ),
    "a byte-order mark in a chat template": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."))}, "marked", (), ["with loss\n<|im_start|>user\n"],
    ),
    "rows that --data does not take": (
        {"a.jsonl": [{"instruction": f"Name bird {i}.", "response": "A wren."} for i in range(5)]},
        "base", ("--data=DIR/a.jsonl:2",), ["compiling 2 of 5 rows", "not taken of a, as --data asks: 3 rows"],
    ),
    "malformed rows that are skipped": (
        {"a.jsonl": '{"instruction": "Name a bird.", "response": "A wren."}\n{"instruction": [%s], "response": "x"}\n'
                    % ("9" * 5000)},
        "base", ("--max_bad_rows=1",), ["left out, malformed: 1"],
    ),
    "columns next to plain text": (
        {"a.jsonl": [{"text": f"{TEXT}{i}", "url": "x", "meta": {"pile_set_name": "Web"}} for i in range(3)]},
        "base", ("--data=text@DIR/a.jsonl",), ["category Web", "column 'url' of text is ignored: 3 rows"],
    ),
    "entries of meta next to plain text": (
        {"a.jsonl": [{"text": f"{TEXT}{i}", "meta": {"pile_set_name": "Web", "summary": "A dog."}} for i in range(3)]},
        "base", ("--data=text@DIR/a.jsonl",), ["category Web", "column 'meta.summary' of text is ignored: 3 rows"],
    ),
    "an entry of meta that the user ignores next to empty texts": (
        {"a.yaml": "file: a.jsonl\nschema: text\nignore: [meta]\n",
         "a.jsonl": [{"text": "" if i else TEXT, "meta": {"text": TEXT}} for i in range(3)]},
        "base", (), ["column 'meta.text' of a is ignored: 3 rows", "left out, the document is empty: 2"],
    ),
    "a date in the template": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."))}, "dated", ("--template_date=2001-02-03",),
        ["Today: 03 Feb 2001"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEEN)
def test_content_is_used_or_counted(kind: str, prepared: Callable[..., tuple[int, str, str]]) -> None:
    files, model, flags, expected = SEEN[kind]
    code, output, errors = prepared(files, model, *flags)
    assert code == 0, errors
    assert " samples: " in output
    for text in expected:
        assert text in output, output
    lost = ("left out", "is ignored", "joined to it", "not taken", "without loss", "chat template: ", "learned, too: ")
    assert (COMPLETE in output) != any(phrase in output.replace(COMPLETE, "") for phrase in lost)


REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str]] = {
    "tools next to a chat": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."), tools="[{}]")}, "chatml", (),
        "DIR/a.jsonl: nothing reads the content of column 'tools' (1 row); remove it, or describe",
    ),
    "calls of tools": (
        {"a.jsonl": chat(user("Name a bird."), bot("Let me look.", tool_calls=[{"name": "f"}]), bot("A wren."))},
        "chatml", (), "DIR/a.jsonl row 1: message 2 of 'messages' has 'tool_calls', which is not read; remove it",
    ),
    "half a weight": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren.", weight=0.5))}, "chatml", (),
        "DIR/a.jsonl row 1: message 2 of 'messages' has 'weight' 0.5; only 0, 1, true and false are possible",
    ),
    "a part with an image": (
        {"a.jsonl": chat(user([{"type": "image", "url": "x"}]), bot("A wren."))}, "chatml", (),
        "DIR/a.jsonl row 1: message 1 of 'messages' contains a part with 'url'; only parts of text are read",
    ),
    "reasoning that a template removes": (
        {"a.jsonl": chat(user("Two and two?"), bot("<think>Two.</think>It is four."))}, "r1", (),
        "DIR/a.jsonl row 1: its chat template leaves out part of what the assistant says; fix it",
    ),
    "another start of an answer": (
        {"a.jsonl": chat(user("Two and two?"), bot("It is four."))}, "r1_new", (),
        "DIR/a.jsonl row 1: its chat template begins an answer in another way than it asks for one: ",
    ),
    "a template that moves a system message": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."), system("Now in capitals."), user("Again."), bot("A."))},
        "system_first", (),
        "DIR/a.jsonl row 1: its chat has turns that the chat template changes when more turns follow; make each turn",
    ),
    "a system message without a place": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."), system("Now in capitals."), user("Again."), bot("A."))},
        "chatml", ("--template=alpaca",),
        "DIR/a.jsonl row 1: has a system message after other messages, for which template 'alpaca' has no place;",
    ),
    "a template that fails": (
        {"a.jsonl": chat(user("Name a bird."), bot("A wren."))}, "failing", (),
        "DIR/a.jsonl row 1: its chat is rejected by the chat template: can only concatenate str (not \"int\") to str;",
    ),
    "a key twice": (
        {"a.jsonl": '{"instruction": "Name a bird.", "response": "A wren.", "response": "A tit."}\n'}, "base", (),
        "DIR/a.jsonl row 1: key 'response' appears twice in an object; remove one; fix them",
    ),
    "a heading twice": (
        {"a.csv": "instruction,response,response\nName a bird.,A wren.,A tit.\n"}, "base", (),
        "DIR/a.csv: two columns are called 'response'; rename or remove one",
    ),
    "most texts are empty": (
        {"a.jsonl": [{"text": "" if i else "x", "original": TEXT, "label": 1} for i in range(10)]}, "base",
        ("--data=text@DIR/a.jsonl",),
        "DIR/a.jsonl: most texts are empty, but column 'original' next to them has content; describe the data set in "
        "YAML with schema: text and columns: {text: original}, or with ignore: [original] (docs/data.md)",
    ),
    "most texts are empty next to an entry of meta": (
        {"a.jsonl": [{"text": "" if i else "x", "meta": {"text": TEXT, "pile_set_name": "Web"}} for i in range(10)]},
        "base", ("--data=text@DIR/a.jsonl",),
        "DIR/a.jsonl: most texts are empty, but column 'meta.text' next to them has content; move it into text, or "
        "describe the data set in YAML with ignore: ['meta.text'] (docs/data.md)",
    ),
    "UTF-16": (
        {"a.jsonl": json.dumps({"instruction": "a", "response": "b"}).encode("utf-16")}, "base", (),
        "DIR/a.jsonl: is UTF-16; save it as UTF-8",
    ),
    "UTF-16 without its mark": (
        {"a.csv": "instruction,response\na,b\n".encode("utf-16-le")}, "base", (),
        "DIR/a.csv: is UTF-16 or UTF-32 without its mark, or not text; save it as UTF-8",
    ),
    "a template in UTF-16": (
        {"a.jsonl": [{"instruction": "a", "response": "b"}], "t.txt": "{instruction} {response}".encode("utf-16")},
        "base", ("--template=DIR/t.txt",), "DIR/t.txt: is UTF-16; save it as UTF-8",
    ),
    "a template in Latin-1": (
        {"a.jsonl": [{"instruction": "a", "response": "b"}], "t.txt": b"{instruction} \xe9 {response}"},
        "base", ("--template=DIR/t.txt",), "DIR/t.txt: not UTF-8 at byte 14 of the file; save it as UTF-8",
    ),
    "one JSON list named .jsonl": (
        {"a.jsonl": json.dumps([{"instruction": "a", "response": "b"}] * 3, indent=1)}, "base", (),
        "DIR/a.jsonl: is one JSON list, not one object per line; name it .json",
    ),
    "an LFS pointer": (
        {"a.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}, "base", (),
        "DIR/a.parquet: is a Git LFS pointer, not the file itself; run git lfs pull in its folder",
    ),
    "a long row": (
        {"a.jsonl": [{"instruction": "a", "response": "b" * 1_100_000}]}, "base", ("--max_document=1",),
        "DIR/a.jsonl: row 1 is longer than 1 MiB, the most that one document may have; divide it, or raise "
        "--max_document",
    ),
    "a long object": (
        {"a.json": [{"instruction": "a", "response": "b" * 1_100_000}]}, "base", ("--max_document=1",),
        "DIR/a.json: object 1 is longer than 1 MiB, the most that one document may have",
    ),
    "a long field": (
        {"a.csv": 'instruction,response\na,"' + "b\n" * 600_000 + '"\n'}, "base", ("--max_document=1",),
        "DIR/a.csv: a field at line ",
    ),
    "a long document": (
        {"a.txt": "a<|endoftext|>" + "b" * 1_100_000 + "<|endoftext|>c"}, "base",
        ("--max_document=1", "--data=text@DIR/a.txt"), "DIR/a.txt: the document at byte 14 is longer than 1 MiB",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_content_is_refused_by_name(kind: str, prepared: Callable[..., tuple[int, str, str]]) -> None:
    files, model, flags, message = REFUSED[kind]
    code, _, errors = prepared(files, model, *flags)
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert message in errors, errors


@pytest.mark.parametrize(
    ("unknown", "line"),
    [
        (None, "characters for which the tokenizer has no token, deleted: 5; first, DIR/a.jsonl row 1: 'ü' (U+00FC)"),
        ("<unk>", "unknown tokens instead of text for which the tokenizer has no token: 5; first, DIR/a.jsonl row 1: "),
    ],
)
@pytest.mark.parametrize("columns", [("prompt", "completion"), ("messages",), ("text",)])
def test_characters_without_a_token_are_counted(
    columns: tuple[str, ...],
    unknown: str | None,
    line: str,
    prepared: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    """A tokenizer without bytes deletes other characters, or writes its unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*filter(None, [unknown]), "</s>", *map(chr, range(32, 127)), "▁", "\n"]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", model_max_length=512)
    tokenizer.save_pretrained(tmp_path / "ascii")
    (tmp_path / "ascii" / "config.json").write_text(json.dumps(config(len(tokenizer))))
    prompt, completion = "Name 0 in Zürich?", "Çafé 0 ünd 東 are."
    rows: dict[tuple[str, ...], User] = {
        ("prompt", "completion"): {"prompt": prompt, "completion": completion},
        ("messages",): {"messages": [user(prompt), bot(completion)]},
        ("text",): {"text": prompt + completion},
    }
    data = "--data=text@DIR/a.jsonl" if columns == ("text",) else "--data=DIR/a.jsonl"
    code, out, err = prepared({"a.jsonl": [rows[columns]]}, str(tmp_path / "ascii"), data)
    assert code == 0, err
    assert line in out
    assert COMPLETE not in out
