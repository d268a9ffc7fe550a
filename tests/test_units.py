"""Units in messages."""

import pytest

from wellread.units import clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00"), (59.9, "00:00:59"), (3661, "01:01:01"), (90_000, "25:00:00"), (400_000, "111:06:40")],
)
def test_hours_do_not_end_with_a_day(seconds: float, text: str) -> None:
    assert clock(seconds) == text
