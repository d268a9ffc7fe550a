"""Control characters: data must not control the terminal, and only `Own` text of this program may.

`wellread.streams` escapes whatever is printed, except `Own` texts. So a message needs no care for the names in it.
"""

from __future__ import annotations

import re

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""Control characters except tab and the ends of lines, and those that reverse the direction of what follows."""
RICH = re.compile(r"\x1b\[(?:[\d;]*m|\d*[AK]|\?25[lh])|\r")
"""What rich writes to color text and to move its progress bars."""


class Own(str):
    """A text whose control characters are intended, e.g. a color, or what a user wants unchanged in a file."""

    __slots__ = ()

    def __str__(self) -> str:
        return self  # print() writes str(text): it stays of this type


def visible(text: str) -> str:
    """The text with control characters (except tab and line feed) as escapes, unless it is an `Own` text."""
    return text if isinstance(text, Own) else CONTROLS.sub(_escape, text)


def styled(text: str, *codes: int) -> Own:
    """The text, its control characters escaped, in the style of these codes of a terminal (31: red); none: plain."""
    plain = visible(text)
    return Own(f"\x1b[{';'.join(map(str, codes))}m{plain}\x1b[0m" if codes else plain)


def joined(texts: list[str], separator: str = "") -> Own:
    """All texts as one `Own` text; control characters of those that are not `Own` are escaped."""
    return Own(separator.join(map(visible, texts)))


def of_rich(text: str) -> Own:
    """What rich has written: only its own control characters stay."""
    between = RICH.split(text)
    return joined([piece for pair in zip(between, [*map(Own, RICH.findall(text)), ""], strict=True) for piece in pair])


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
