"""Control characters in text from elsewhere, and in this program's own."""

import pytest

from wellread.escapes import Own, joined, of_rich, prose, styled, visible

KEPT = {"\t", "\n"}


@pytest.mark.parametrize("code", [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_controls_become_escapes(code: int) -> None:
    character = chr(code)
    expected = character if character in KEPT else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    assert visible(f"a{character}b") == prose(f"a{character}b") == f"a{expected}b"


UNSEEN = {
    "\ufeff": r"\ufeff", "\u200b": r"\u200b", "\u200f": r"\u200f", "\xa0": r"\xa0", "\xad": r"\xad",
    "\u3000": r"\u3000", "\u2028": r"\u2028", "\ue000": r"\ue000", "\U000e0041": r"\U000e0041",
    "\u3164": r"\u3164", "\u2800": r"\u2800", "\ufe0f": r"\ufe0f", "\U000e0100": r"\U000e0100", "\udcff": r"\udcff",
}  # fmt: skip


@pytest.mark.parametrize("character", UNSEEN)
def test_what_cannot_be_seen_is_escaped_in_names_and_stays_in_samples(character: str) -> None:
    assert visible(f"é{character}東") == f"é{UNSEEN[character]}東"
    assert prose(f"é{character}東") == f"é{character}東"


def test_text_of_any_language_stays() -> None:
    text = "Zürich 東京 عربي עברית 👩🔬 e\u0301\r\n\t"
    assert visible(text) == text
    text += " \u200f 👩\u200d🔬 \u00a0"
    assert visible(prose(text)) == text


def test_a_style_is_around_visible_text() -> None:
    assert styled("a\x1b[0mb", 1, 31) == "\x1b[1;31ma\\x1b[0mb\x1b[0m"
    assert styled("a\x07") == "a\\x07"
    assert isinstance(styled("a"), Own)


def test_own_text_stays_own_when_it_is_printed_and_joined() -> None:
    code = Own("\x1b[2m")
    assert visible(code) is code
    assert str(code) is code
    assert joined([code, "\x1b[2m"], "\x07") == "\x1b[2m\x07\\x1b[2m"
    assert type(code + "\x1b") is str


def test_rich_may_color_and_move_but_not_more() -> None:
    assert of_rich("\x1b[38;5;1ma\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25h") == "\x1b[38;5;1ma\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25h"
    assert of_rich("\x1b]8;;x\x1b\\\x1b[2J\x1b[5n\x07") == "\\x1b]8;;x\\x1b\\\\x1b[2J\\x1b[5n\\x07"
    assert of_rich("") == ""
