"""Files of a run, damaged one at a time, and what is wrong with the answers of a command to each damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from support.outcomes import outcome
from wellread.errors import BAD_INPUT

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "run-c5af5a2" / "finetune"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe" * 50,
    "zeros": lambda content: b"\0" * len(content),
    "nested": lambda content: b"[" * 100_000,
    "digits": lambda content: b'{"step": ' + b"9" * 5000 + b"}",
    "list": lambda content: b"[]",
    "number": lambda content: b"5",
    "LFS pointer": lambda content: LFS,
}
"""Kind of damage -> its effect on the content of a file."""


def damaged(path: Path, kinds: Sequence[str] = tuple(CONTENTS)) -> Iterator[tuple[str, bytes]]:
    """Name and content of each damage of a file."""
    content = path.read_bytes()
    return ((kind, CONTENTS[kind](content)) for kind in kinds)


def faults(run: Path, words: Sequence[str], name: str, contents: Iterator[tuple[str, bytes]]) -> list[str]:
    """What is wrong with the answers of a command to each content of a file; what it writes is removed again.

    Parameters
    ----------
    words
        The command; RUN is replaced by the path of the run.
    name
        The file, below the run.
    """
    problems, path = [], run / name
    before, files = path.read_bytes(), set(run.parent.rglob("*"))
    argv = [word.replace("RUN", str(run)) for word in words]
    try:
        for label, content in contents:
            path.write_bytes(content)
            try:
                code, message = outcome(argv)
            except Exception as error:
                problems.append(f"{label}: {type(error).__name__}: {error}"[:150])
                continue
            finally:
                _remove(sorted(set(run.parent.rglob("*")) - files))
            if code == BAD_INPUT and (str(run) not in message or "\n" in message):
                problems.append(f"{label}: {message}")
            assert code in (0, 1, BAD_INPUT)
    finally:
        path.write_bytes(before)
    return problems


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
