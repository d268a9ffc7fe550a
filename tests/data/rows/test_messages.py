"""Messages: weights, parts of text, history, and keys that nothing reads."""

from typing import Any

import pytest

from wellread.data.rows import messages
from wellread.data.rows.content import Dialogue, Turn
from wellread.data.sources.source import has_content

USER = {"role": "user", "content": "Name a bird."}


def dialogue(*turns: dict[str, Any], ignore: tuple[str, ...] = ()) -> Dialogue | str:
    return messages.dialogue(list(turns), "messages", ignore)


def answer(**keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "A wren."} | keys


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable"])
@pytest.mark.parametrize(("value", "scored"), [(0, False), (False, False), (0.0, False), (1, True), (True, True)])
def test_an_answer_can_be_without_loss(key: str, value: object, scored: bool) -> None:
    parsed = dialogue(USER, answer(**{key: value}), USER, answer())
    assert isinstance(parsed, Dialogue)
    assert [turn.scored for turn in parsed.turns] == [scored, True]


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning_content", "thinking", "images", "anything"])
def test_other_keys_with_content_are_refused_by_name(key: str) -> None:
    problem = f"message 2 of 'messages' has '{key}', which is not read; remove it, or list it under ignore:"
    assert dialogue(USER, answer(**{key: [{"name": "weather"}]})) == problem
    for empty in (None, "", " ", [], {}, [None], {"arguments": None}, float("nan")):  # Parquet fills in such values
        assert isinstance(dialogue(USER, answer(**{key: empty})), Dialogue)
    assert isinstance(dialogue(USER, answer(**{key: "x"}), ignore=(key,)), Dialogue)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"weight": 0.5}, "has 'weight' 0.5; only 0, 1, true and false are possible"),
        ({"weight": "0"}, "has 'weight' '0'; only 0, 1, true and false are possible"),
        ({"weight": [0]}, "has 'weight' [0]; only 0, 1, true and false are possible"),
        ({"weight": 0, "train": True}, "has 'weight' and 'train', which contradict each other"),
        ({"value": "A tit."}, "has both 'content' and 'value'; remove one"),
        ({"from": "human"}, "has both 'role' and 'from'; remove one"),
        ({"content": {"text": "A"}}, "contains dict, not text"),
        ({"content": [{"type": "image", "image": "x"}]}, "contains a part with 'image'; only parts of text are read"),
        ({"content": [{"type": "image"}]}, "contains a part with type 'image'; only parts of text are read"),
        ({"content": [{"type": "text"}]}, "contains a part with no text; only parts of text are read"),
    ],
)
def test_malformed_keys(keys: dict[str, Any], problem: str) -> None:
    assert dialogue(USER, answer(**keys)) == f"message 2 of 'messages' {problem}"


def test_a_user_message_cannot_carry_loss() -> None:
    assert isinstance(dialogue(USER | {"weight": 0}, answer()), Dialogue)
    problem = "message 1 of 'messages' has 'train' True, but only answers of the assistant carry loss; remove it"
    assert dialogue(USER | {"train": True}, answer()) == problem


def test_parts_of_text_are_joined() -> None:
    content = [{"type": "text", "text": "A "}, {"text": "wren", "cache_control": None}, "."]
    parsed = dialogue(USER, answer(content=content))
    assert isinstance(parsed, Dialogue)
    assert parsed.turns[0].response == "A wren."


def test_messages_after_the_last_answer_are_counted() -> None:
    parsed = dialogue(USER, answer(), USER, {"role": "system", "content": "x"})
    assert isinstance(parsed, Dialogue)
    assert (len(parsed.turns), parsed.trailing) == (1, 2)


def test_history_is_pairs_or_messages() -> None:
    turn = Turn({"instruction": "Name a bird.", "context": ""}, "A wren.")
    assert messages.history([["Name a bird.", "A wren."]], "history") == ((turn,), "", None)
    assert messages.history([USER, answer()], "history") == ((turn,), "", None)
    for value in (None, [], "", [[]]):
        assert messages.history(value, "history") == ((), "", None)


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("Name a bird.", "'history' is str, not a list of [prompt, answer]"),
        ([["Name a bird."]], "item 1 of 'history' is not [prompt, answer]"),
        ([["a", "b"], ["c", 1]], "item 2 of 'history' is not [prompt, answer]"),
        ([["a", "\ud83d"]], "'history' contains half of a surrogate pair (an incomplete character)"),
        ([USER, answer(), USER], "'history' does not end with an answer of the assistant"),
        ([USER, answer(thinking="x")], "message 2 of 'history' has 'thinking', which is not read"),
    ],
)
def test_malformed_history(history: object, problem: str) -> None:
    error = messages.history(history, "history")[2]
    assert error is not None
    assert error.startswith(problem)


def test_numbers_and_booleans_are_content() -> None:
    assert has_content(0)
    assert has_content(False)
    assert not has_content({"a": [None, "", {"b": float("nan")}]})
