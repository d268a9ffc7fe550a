"""Chat templates are foreign programs: what they leave out, change or move is refused; they cannot see the clock."""

import json
import re
import resource
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from support.chat_models import config

from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus import rendering
from wellread.corpus.read import Corpus
from wellread.corpus.rendering import Message, Renderer
from wellread.corpus.tokenizer import Tokenizer, train_bpe
from wellread.data.mixture import corpus_settings
from wellread.data.sets import find
from wellread.errors import UserError

DATE = "2024-07-26"
MARKS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""As GLM-4.5: only the next role marker ends an answer."""
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}"
    "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "<|assistant|>{{ c }}<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As DeepSeek-R1's distilled models: the reasoning is removed."""
R1_NEW = R1.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
PLAIN = (
    "{% for m in messages %}{{ '\nUser: ' if m.role == 'user' else '\nBot: ' }}{{ m.content }}{% endfor %}"
    "{{ '\nBot:' if add_generation_prompt }}"
)
DOUBLING = "{% set n = namespace(x='a') %}{% for i in range(50) %}{% set n.x = DOUBLED %}{% endfor %}"
TURNS = [("user", "Name a red fruit."), ("assistant", "An apple."), ("user", "And a pear?"), ("assistant", "Green.")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer") / "base"
    train_bpe(["Name a bird. A wren. It is four."] * 50, 300, target, 512)
    backend = Tokenizer.load(target).backend
    backend.add_special_tokens({"additional_special_tokens": [*MARKS]})
    backend.save_pretrained(target)
    return target


def loaded(directory: Path, template: str) -> Tokenizer:
    tokenizer = Tokenizer.load(directory)
    tokenizer.backend.chat_template = template
    return tokenizer


def messages(pairs: list[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in pairs]


def marked(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> str:
    """The chat, with ⟦ ⟧ around the tokens that carry loss."""
    tokens, spans, _ = tokenizer.chat(messages(pairs), DATE)
    text, end = "", 0
    for start, stop in spans:
        text += f"{tokenizer.decode(tokens[end:start])}⟦{tokenizer.decode(tokens[start:stop])}⟧"
        end = stop
    return text + tokenizer.decode(tokens[end:])


def refusal(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> str:
    with pytest.raises(UserError) as refused:
        tokenizer.chat(messages(pairs), DATE)
    return f"its chat {refused.value}"


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (R1, "<think>Two and two make four.</think>\n\nIt is four."),
        (CHATML.replace("m.content", "m.content[:9]"), "It is four and more."),
        (CHATML.replace("m.content", "m.content | lower"), "IT IS four."),
        (CHATML.replace("m.content", "m.content | replace('two', '2')"), "It is two."),
        (CHATML.replace("m.content", "m.content | reverse"), "It is two."),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "It is four."),
        ("{% for m in messages %}{{ m.content if m.role == 'user' else '<|endoftext|>' }}{% endfor %}", "e"),
    ],
)
def test_templates_that_leave_out_part_of_an_answer(directory: Path, template: str, answer: str) -> None:
    error = refusal(loaded(directory, template), [("user", "x x"), ("assistant", answer)])
    assert error == "its chat template leaves out part of what the assistant says"


def test_the_beginning_of_an_answer(directory: Path) -> None:
    """The template may write the beginning of the answer itself, but not another one than when it asks."""
    thought = [("user", "Two and two?"), ("assistant", "<think>\nEasy.</think>Four.")]
    assert refusal(loaded(directory, R1_NEW), thought) == (
        "its chat template begins an answer in another way than it asks for one: "
        "'nd two?<|assistant|><think>\\n' asks for the answer, "
        "'nd two?<|assistant|>Four.<|endoftext|>' contains it"
    )
    keeps = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert marked(loaded(directory, keeps), thought).endswith("assistant\n<think>\n⟦Easy.</think>Four.<|im_end|>⟧")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            GLM,
            "[gMASK]<sop><|user|>\nName a red fruit.<|assistant|>\n⟦An apple.<|user|>⟧\nAnd a pear?<|assistant|>\n"
            "⟦Green.<|endoftext|>⟧",
        ),
        (
            PLAIN,
            "\nUser: Name a red fruit.\nBot:⟦ An apple.\nUser:⟧ And a pear?\nBot:⟦ Green.<|endoftext|>⟧",
        ),
        (
            CHATML,
            "<|im_start|>user\nName a red fruit.<|im_end|>\n<|im_start|>assistant\n⟦An apple.<|im_end|>⟧\n"
            "<|im_start|>user\nAnd a pear?<|im_end|>\n<|im_start|>assistant\n⟦Green.<|im_end|>⟧",
        ),
    ],
)
def test_every_scored_turn_ends_in_a_scored_token(directory: Path, template: str, expected: str) -> None:
    """Where the template writes nothing after an answer, the next role marker is what ends it."""
    assert marked(loaded(directory, template), TURNS) == expected


def test_role_markers_that_contain_the_message(directory: Path) -> None:
    """The prompts `e` and ` ` are not taken for a part of the marker before them."""
    for prompt in ("e", " "):
        chat = [*TURNS[:2], ("user", prompt), *TURNS[3:]]
        assert f"⟦ An apple.\nUser:⟧ {prompt}\nBot:" in marked(loaded(directory, PLAIN), chat)
    assert "⟦ An apple.\nBot:⟧⟦ Green." in marked(loaded(directory, PLAIN), [*TURNS[:2], TURNS[3]])


def test_answers_that_nothing_ends(directory: Path) -> None:
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert refusal(loaded(directory, joined), TURNS) == (
        "its chat template writes nothing between an answer and the next message"
    )
    assert marked(loaded(directory, joined), TURNS[:2]) == "Name a red fruit.⟦An apple.<|endoftext|>⟧"


def test_a_system_message_in_mid_conversation_stays_where_it_is(directory: Path) -> None:
    chat = [*TURNS[:2], ("system", "Use capitals."), *TURNS[2:]]
    assert marked(loaded(directory, CHATML), chat) == (
        "<|im_start|>user\nName a red fruit.<|im_end|>\n<|im_start|>assistant\n⟦An apple.<|im_end|>⟧\n"
        "<|im_start|>system\nUse capitals.<|im_end|>\n<|im_start|>user\nAnd a pear?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Green.<|im_end|>⟧"
    )
    first = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    silent_system = CHATML.replace("in messages", "in messages if m.role != 'system'")
    assert refusal(loaded(directory, silent_system), chat) == (
        "its chat template leaves out or changes part of what the system message says"
    )
    assert "changes when more turns follow" in refusal(loaded(directory, first + silent_system), chat)
    silent = CHATML.replace("m.content", "(m.content if m.role != 'user')")
    assert refusal(loaded(directory, silent), TURNS) == (
        "its chat template leaves out or changes part of what the user says"
    )


@pytest.mark.parametrize(
    ("template", "prompts", "changes"),
    [
        (CHATML, ("e", "user"), []),
        (PLAIN, ("User", "Bot:"), []),
        (GLM.replace("m.content", "m.content ~ ' Think now.'"), ("e",), ["'e' becomes 'e Think now.'"]),
        (
            CHATML.replace("{{ m.content", "{{ m.content ~ ' ' ~ m.content if m.role == 'user' else m.content"),
            ("e", "A wren?"),
            ["'e' becomes 'e e'", "'A wren?' becomes 'A wren? A wren?'"],
        ),
        (
            CHATML.replace("{{ m.content", "{{ 'Please give an answer to this: ' if m.role == 'user' }}{{ m.content"),
            ("A wren?",),
            ["'A wren?' becomes 'user\\nPlease give an answer to this: A wren?'"],
        ),
        (
            "{% for m in messages %}{{ '<s>[INST] ' ~ m.content ~ ' [/INST]' if m.role == 'user' else m.content }}"
            "{{ eos_token if m.role == 'assistant' }}{% endfor %}",
            ("e", "[/INST]"),
            [],
        ),
        (
            "{% for m in messages %}{{ 'GPT4 Correct ' ~ ('User: ' if m.role == 'user' else 'Assistant: ') }}"
            "{{ m.content }}{{ eos_token }}{% endfor %}{{ 'GPT4 Correct Assistant: ' if add_generation_prompt }}",
            ("e", "GPT4 Correct User"),
            [],
        ),
    ],
)
def test_text_next_to_messages_is_reported(
    directory: Path, template: str, prompts: tuple[str, ...], changes: list[str]
) -> None:
    """Also a message that the template repeats; role markers are not text, even if they contain the message."""
    chat = [pair for prompt in prompts for pair in (("user", prompt), ("assistant", "Green."))]
    reported = loaded(directory, template).chat(messages(chat), DATE).changes
    assert [change.difference for change in reported if change.name == "prompts_added"] == changes
    assert {change.name for change in reported} <= {"prompts_added"}


def test_a_probe_that_a_template_refuses(directory: Path) -> None:
    """A repeated message is only reported, so a template that cannot be probed is not refused."""
    choosy = CHATML.replace("{{ m.role", "{% if m.content | length > 20 %}{{ 1 / 0 }}{% endif %}{{ m.role")
    assert not loaded(directory, choosy).chat(messages([("user", "e"), TURNS[1]]), DATE).changes


@pytest.mark.parametrize("value", ["raise_exception", "strftime_now", "range", "[raise_exception]"])
def test_functions_are_always_the_same_text(directory: Path, value: str) -> None:
    tokenizer = loaded(directory, CHATML.replace("m.role }}", f"m.role }}}}{{{{ {value} ~ '' }}}}"))
    text = tokenizer.renderer(DATE)(messages(TURNS), prompt=True)
    assert f"user{re.sub(r'[a-z_]+', lambda match: f'<function {match[0]}>', value)}\n" in text


@pytest.mark.parametrize("value", ["dict", "'a'.upper", "joiner()", "messages | map('length')", "[joiner()] ~ ''"])
def test_addresses_of_objects_are_refused(directory: Path, value: str) -> None:
    template = f"{{{{ {value} }}}}{CHATML}"
    assert refusal(loaded(directory, template), TURNS) == (
        "its chat gets the address of an object, which is random, from the chat template; fix the template"
    )
    quoted = [("user", "Why <function f at 0x7fb2>?"), TURNS[1]]
    assert "at 0x7fb2" in marked(loaded(directory, CHATML), quoted)
    assert marked(loaded(directory, f"<f at 0x1>{CHATML}"), TURNS).startswith("<f at 0x1>")


def test_named_templates_without_a_default(directory: Path, tmp_path: Path) -> None:
    """It is an error of the model, not of the rows, so --max_bad_rows does not skip all of them."""
    templates: Any = {"tool_use": CHATML, "rag": CHATML}
    expected = (
        "its chat templates are named rag, tool_use, none of them default; "
        "give one of them this name in its tokenizer_config.json"
    )
    assert refusal(loaded(directory, templates), TURNS) == expected
    model = shutil.copytree(directory, tmp_path / "model")
    (model / "config.json").write_text(json.dumps(config(Tokenizer.load(model).size)))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": template} for name, template in templates.items()]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages(TURNS)}) + "\n")
    values = {"model": str(model), "data": str(path), "corpora": str(tmp_path / "corpora"), "max_bad_rows": 9}
    with pytest.raises(UserError) as refused:
        prepare(RunConfig.of(**values))
    assert str(refused.value) == f"--model model: {expected}"


def test_changes_of_earlier_turns(directory: Path) -> None:
    """A single turn is scored; the template changes it when another turn follows."""
    last = CHATML.replace("m.content", "m.content ~ ('!' if loop.last and m.role == 'assistant')")
    assert marked(loaded(directory, last), TURNS[:2]).endswith("⟦An apple.!<|im_end|>⟧")
    assert refusal(loaded(directory, last), TURNS) == (
        "its chat has turns that the chat template changes when more turns follow; make each turn a row"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9].content.x }}", "dict object has no element 9|no element 9|has no attribute"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('no\nlines') }}", "no"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ messages | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|__class__"),
        ("{{ 'a' * 10 ** 12 }}", "a repeated text is too long"),
        ("{{ 10 ** 1000000000 }}", "a power is too large"),
        (DOUBLING.replace("DOUBLED", "n.x ~ n.x"), "MemoryError"),
        (DOUBLING.replace("DOUBLED", "n.x + n.x"), "MemoryError"),
        (DOUBLING.replace("DOUBLED", "[n.x, n.x] | join"), "MemoryError"),
        ("{{ '%99999999999d' | format(1) }}", "MemoryError"),
        ("{% for i in range(90000) %}{% for j in range(90) %}x{% endfor %}{% endfor %}", "wrote more than 1,0"),
    ],
)
def test_any_exception_of_a_template_is_a_refused_row(directory: Path, template: str, reason: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler, (timer, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    error = refusal(loaded(directory, template), TURNS)
    assert error.startswith("its chat is rejected by the chat template: ")
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(timer, abs=60)  # that of the test's own timeout
    assert signal.getsignal(signal.SIGALRM) is handler
    assert re.search(reason, error), error
    assert "\n" not in error


def test_rendering_has_a_time_limit(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert refusal(loaded(directory, endless), TURNS) == (
        "its chat takes the chat template more than 0.2 s; fix the template"
    )
    monkeypatch.setattr(rendering, "SECONDS", 10.0)
    results: list[str] = []
    tokenizer = loaded(directory, CHATML)
    thread = threading.Thread(target=lambda: results.append(tokenizer.renderer(DATE)(messages(TURNS), prompt=False)))
    thread.start()
    thread.join()
    assert results[0].endswith("Green.<|im_end|>\n")


def test_the_clock_of_a_template_shows_a_fixed_date(directory: Path) -> None:
    default = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    for dated in ("{{ strftime_now('%d %b %Y') }} 00:00", default + "{{ date_string }} 00:00"):
        renderer = Renderer(loaded(directory, dated).backend, "2025-01-02")
        assert renderer(messages(TURNS), prompt=False) == "02 Jan 2025 00:00"


def test_the_date_is_part_of_the_key_of_chats(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages(TURNS)}) + "\n")

    def settings(data: str, **values: Any) -> dict[str, Any]:
        return corpus_settings(RunConfig.of(seq_len=64, **values).data, find(data), "t")

    assert settings(str(path))["chat"] == {"version": 3, "date": DATE}
    assert settings(str(path), template_date="2025-01-02")["chat"]["date"] == "2025-01-02"
    assert settings("sample", template_date="2025-01-02") == settings("sample")
    with pytest.raises(UserError, match="--template_date 2025-13-02: is not a date; write it as YYYY-MM-DD"):
        RunConfig.of(template_date="2025-13-02")


def test_refused_rows_are_named_and_counted(directory: Path, tmp_path: Path) -> None:
    """A chat that does not fit is an error with file and row, or is skipped; other rows are compiled."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = tmp_path / "model"
    shutil.copytree(directory, model)
    (model / "chat_template.jinja").write_text(R1)
    size = Tokenizer.load(model).size
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).save_pretrained(model)
    path = tmp_path / "chats.jsonl"
    rows = [TURNS, [("user", "Two and two?"), ("assistant", "<think>Easy.</think>Four.")]]
    path.write_text("".join(json.dumps({"messages": messages(row)}) + "\n" for row in rows))
    settings = {"model": str(model), "data": str(path), "corpora": str(tmp_path / "corpora"), "holdout": 0.0}
    with pytest.raises(UserError) as refused:
        prepare(RunConfig.of(**settings))
    assert str(refused.value) == (
        f"{path} row 2: its chat template leaves out part of what the assistant says; "
        "fix it, or skip such rows with --max_bad_rows"
    )
    corpus = Corpus.open(prepare(RunConfig.of(**settings, max_bad_rows=1)))
    assert corpus.meta["counts"]["dropped_no_place_in_chat_template"] == 1
    assert corpus.n == 1
    assert corpus.meta["settings"]["chat"] == {"version": 3, "date": DATE}
