"""The words of messages, comments, docstrings, documents and variable names: plain, modern, and the field's own.

docs/glossary.md says which word to use for which thing.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CODE = ("wellread", "launch", "finetune", "pretrain", "eval", "bench", "scripts", "examples", "tests")
PROSE = (".md", ".sh", ".j2", ".yaml", ".yml", ".toml", ".cff")
NOT_OURS = (
    "tests/fixtures",  # runs of an old version
    "tests/rules/test_words.py",
    "configs/data",  # the text of samples
    "wellread/data/sources/generated.py",  # a grammar of stories
    "docs/glossary.md",  # names the words that it replaces
    "CHANGELOG.md",  # names flags and messages as they were
)

WORDS = {
    r"alone": "only, by itself",
    r"anew|afresh": "again",
    r"besides?": "next to, in addition to",
    r"blanks?": "space",
    r"colour\w*|behaviour\w*|neighbour\w*|labell\w+|licence": "American spelling",
    r"(?:token|optim|recogn|serial|normal|quant|synchron)is(?:e|ed|er|es|ing|ation)": "American spelling",
    r"for ever|evermore": "forever, without end",
    r"for want of|in want of": "missing",
    r"had from|be had": "be downloaded, be obtained",
    r"(?<!there )(?:is|are) no(?! longer\b| more than\b)": "is not a, is an invalid",
    r"is there already|are there already|there already": "already exists",
    r"lies|lie|lay|lying": "is, is stored",
    r"mend(?:s|ed|ing)?": "fix",
    r"nought|naught": "nothing, zero",
    r"pass(?:es|ed|ing)? over": "skip",
    r"lacks?|lacked|lacking": "misses, has no",
    r"lest|hitherto|henceforth|whence|whereof|thereof|therein|herein|whatsoever|thrice|yonder|likewise|amidst?": "-",
    r"shall|ought": "must, will, should",
    r"spelt|learnt|burnt": "American spelling",
    r"standing still": "paused",
    r"stands?|stood|standing": "is, means",
    r"stretch(?:es)?": "chunk, range",
    r"(?<!cannot )tells?|told|telling": "say, distinguish, inform",
    r"(?<!once )upon": "on",
    r"(?:in )?vain": "without success, timed out",
    r"made up": "synthetic, invented, consists of",
    r"(?:taken|told|tell|keep|kept|known) apart": "distinguish",
    r"strangers?": "other process, unknown",
    r"rooms?|houses?|floors?": "package, layer, space",
    r"all the same": "anyway",
    r"by hand of|of one's own|of late": "-",
    r"heed\w*|borne|bade|bid|begets?|befalls?|behold": "-",
}
"""Pattern of a banned word -> what to write."""
PATTERNS = {re.compile(rf"(?<![\w`-])(?:{pattern})(?![\w`])", re.IGNORECASE): use for pattern, use in WORDS.items()}

NAMES = {
    *("found", "told", "held", "there", "own", "here", "mine", "ours", "theirs", "whole", "nothing"),
    *(
        "wanted",
        "given",
        "kept",
        "seen",
        "asked",
        "taken",
        "made",
        "shown",
        "said",
        "heard",
        "gone",
        "begun",
        "lacking",
    ),
    *(
        "known",
        "done",
        "rest",
        "others",
        "cut",
        "left",
        "drawn",
        "meant",
        "sent",
        "named",
        "further",
        "apart",
        "chosen",
    ),
}
"""Names that say nothing of the thing: variables, parameters and functions are nouns or verbs."""
KEYS = {"launch/checks/check.py": {"found"}, "wellread/corpus/marks.py": {"taken", "left"}}
"""Fields of dataclasses that are keys of a file or of JSON, by module: they keep their names."""


def files(root: Path) -> list[Path]:
    folders = [root, *(root / name for name in (*CODE, "docs", "configs", ".github", ".ci"))]
    paths = [path for path in root.iterdir() if path.is_file()]
    paths += [path for folder in folders[1:] for path in folder.rglob("*") if path.is_file()]
    kept_out = tuple(str(root / name) for name in NOT_OURS)
    paths = [path for path in paths if path != root / "configs/marks/spelling.yaml"]  # both spellings are its content
    return sorted(path for path in paths if not str(path).startswith(kept_out) and "__pycache__" not in path.parts)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file that people read: all of a document; comments, texts and names of tests of a module.

    Of the texts in tests only docstrings: others are data.
    """
    if path.suffix in PROSE or path.name in ("Makefile", "run"):
        yield from enumerate(path.read_text().splitlines(), 1)
    if path.suffix != ".py":
        return
    text, is_test = path.read_text(), "tests" in path.parts
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_text = token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        if token.type == tokenize.COMMENT or (is_text and (not is_test or token.string.startswith('"""'))):
            yield from enumerate(token.string.splitlines(), token.start[0])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Variables, parameters and functions that a module defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.lineno, node.name


def banned_words(root: Path, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {match.group(0)!r}, write: {use}"
        for path in paths
        for number, line in prose(path)
        for pattern, use in PATTERNS.items()
        if (match := pattern.search(line))
    ]


def test_words_are_plain(root: Path) -> None:
    assert not banned_words(root, files(root))


def test_names_are_of_things(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{number}: {name}"
        for path in files(root)
        if path.suffix == ".py"
        for number, name in names(path)
        if name.strip("_") in NAMES - KEYS.get(str(path.relative_to(root)), set())
    ]
    assert not wrong


def test_documents_wrap_at_100_columns(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{number}"
        for path in _documents(root)
        for number, line in enumerate(_without_code(path.read_text()), 1)
        if len(line) > 100 and not line.lstrip().startswith("|") and " " in line.strip()
    ]
    assert not wrong


def test_no_line_of_a_document_begins_with_a_flag(root: Path) -> None:
    """A command that was wrapped as prose has its flags outside the code; flags in sentences do not begin lines."""
    wrong = [
        f"{path.relative_to(root)}:{number}: {line}"
        for path in _documents(root)
        for number, line in enumerate(_without_code(path.read_text()), 1)
        if re.match(r" *--[a-z]", line)
    ]
    assert not wrong


def _documents(root: Path) -> list[Path]:
    return [*(path for path in files(root) if path.suffix == ".md"), root / "CHANGELOG.md"]


def _without_code(text: str) -> Iterator[str]:
    """Lines of a document, those of code blocks empty: output is shown as it is printed."""
    inside = False
    for line in text.splitlines():
        inside ^= line.lstrip().startswith("```")
        yield "" if inside or line.startswith("    ") else line


@pytest.mark.parametrize(
    "line",
    [
        "mend them, or pass over them",
        "cannot be had from the hub",
        "'x' is no time",
        "runs/x: is there already",
        "killed for want of memory",
        "0.01 s standing still",
        "waited in vain",
        "two blanks",
    ],
)
def test_old_messages_are_banned(line: str) -> None:
    assert any(pattern.search(line) for pattern in PATTERNS)


@pytest.mark.parametrize("line", ["there is no checkpoint", "Once upon a time", "is no longer read", "`blank`"])
def test_plain_lines_are_not(line: str) -> None:
    assert not any(pattern.search(line) for pattern in PATTERNS)
