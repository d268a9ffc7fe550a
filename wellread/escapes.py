"""Characters that control a terminal or cannot be seen: whatever is printed is escaped, except `Own` texts.

`wellread.streams` escapes by `visible`, so a message needs no care for the names in it: a byte-order mark in a column
or a no-break space in a file name is seen. In the text of samples, `prose`, only control characters are escaped.
"""

from __future__ import annotations

import re

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""Control characters except tab and the ends of lines, and those that reverse the direction of what follows."""
BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that look like nothing, among those that Python calls printable."""
RICH = re.compile(r"\x1b\[(?:[\d;]*m|\d*[AK]|\?25[lh])|\r")
"""What rich writes to color text and to move its progress bars."""


class Own(str):
    """A text whose control characters are intended, e.g. a color, or what a user wants unchanged in a file."""

    __slots__ = ()

    def __str__(self) -> str:
        return self  # print() writes str(text): it stays of this type


def visible(text: str) -> str:
    """The text with an escape for each character that cannot be seen, unless it is an `Own` text.

    Spaces, tabs and ends of lines stay.
    """
    if isinstance(text, Own) or (text.isprintable() and not BLANK.search(text)):
        return text
    return "".join(c if _is_seen(c) else _escape(c) for c in CONTROLS.sub(lambda match: _escape(match[0]), text))


def one_line(text: str) -> str:
    """The text made `visible`, its ends of lines, too: a path may contain one, and each message is one line."""
    return visible(text).replace("\r", "\\r").replace("\n", "\\n")


def prose(text: str) -> Own:
    """The text of a sample, in any language: only its control characters (except tab and line feed) become escapes."""
    return text if isinstance(text, Own) else Own(CONTROLS.sub(lambda match: _escape(match[0]), text))


def _is_seen(character: str) -> bool:
    return character in "\t\r\n" or (character.isprintable() and not BLANK.match(character))


def styled(text: str, *codes: int) -> Own:
    """The text, made `visible`, in the style of these codes of a terminal (31: red); none: plain."""
    plain = visible(text)
    return Own(f"\x1b[{';'.join(map(str, codes))}m{plain}\x1b[0m" if codes else plain)


def joined(texts: list[str], separator: str = "") -> Own:
    """All texts as one `Own` text; those that are not `Own` are made `visible`."""
    return Own(separator.join(map(visible, texts)))


def of_rich(text: str) -> Own:
    """What rich has written: only its own control characters stay."""
    between = RICH.split(text)
    return Own(
        "".join(piece for pair in zip(map(prose, between), [*RICH.findall(text), ""], strict=True) for piece in pair)
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
