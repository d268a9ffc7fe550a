"""Units of memory and disk, of which messages and flags use GiB; the plural of nouns; hours and minutes."""

MIB = 2**20
"""Bytes of a MiB."""
GIB = 2**30
"""Bytes of a GiB."""


def plural(count: int, noun: str) -> str:
    """``1 sample``, ``1,234 samples``, ``2 batches``."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{ending}"


def clock(seconds: float) -> str:
    """``HH:MM:SS``, with as many hours as there are."""
    minutes, remaining = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{remaining:02}"
