"""Which of the two forms of `wellread membership` arguments have."""

from collections.abc import Sequence


def names_a_model(argv: Sequence[str]) -> bool:
    """Whether these arguments of `wellread membership` are those of any model instead of a run."""
    return any(word.partition("=")[0] in ("--model", "--members", "--nonmembers", "--corpus") for word in argv)
