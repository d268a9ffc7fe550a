"""Text is UTF-8 in any locale: whatever reads or writes text in the library and the programs says so."""

import ast
from pathlib import Path

import pytest

FOLDERS = ("wellread", "launch", "finetune", "pretrain", "eval")


def faults(text: str) -> list[int]:
    """Lines of calls that use the locale's encoding: read_text(), write_text(x), open(x), text=True."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg for keyword in node.keywords}
        is_method = isinstance(node.func, ast.Attribute)
        is_text = name in ("read_text", "write_text") if is_method else name == "open"
        modes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        binary = name == "open" and any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
        if (is_text and not binary and "encoding" not in keywords) or (
            keywords & {"text", "universal_newlines"} and (name in ("run", "Popen", "check_output"))
        ):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("folder", FOLDERS)
def test_text_has_an_encoding(folder: str, root: Path) -> None:
    paths = (root / folder).rglob("*.py")
    assert [f"{path}:{line}" for path in paths for line in faults(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("open(x)", True),
        ("open(x, 'rb')", False),
        ("open(x, 'w', encoding='utf-8')", False),
        ("path.read_text()", True),
        ("subprocess.run(x, text=True)", True),
        ("Run.open(x)", False),
    ],
)
def test_the_rule_itself(text: str, is_fault: bool) -> None:
    assert bool(faults(text)) == is_fault
