"""No code of this repository lets a model bring its own code, even where transformers' default changes or asks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("wellread", "launch", "finetune", "pretrain", "eval", "bench", "scripts", "examples")
METHODS = ("from_pretrained", "from_config")


def trusting_calls(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call of a class Auto… that does not pass ``trust_remote_code=False`` by itself."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in METHODS:
            continue
        owner = ast.unparse(node.func.value)
        values = [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"]
        refused = [isinstance(value, ast.Constant) and value.value is False for value in values]
        if owner.rpartition(".")[2].startswith("Auto") and refused != [True]:
            yield node.lineno, f"{owner}.{node.func.attr}"


def test_every_call_refuses_foreign_code(root: Path) -> None:
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    texts = {path: path.read_text() for path in files}
    assert sum(text.count("trust_remote_code=False") for text in texts.values()) >= 15
    wrong = [f"{path.relative_to(root)}:{line}: {call}" for path in files for line, call in trusting_calls(texts[path])]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("AutoTokenizer.from_pretrained(path)", True),
        ("transformers.AutoModelForCausalLM.from_config(config, dtype=x)", True),
        ("AutoConfig.from_pretrained(path, trust_remote_code=True)", True),
        ("AutoConfig.from_pretrained(path, trust_remote_code=trust)", True),
        ("AutoConfig.from_pretrained(path, **settings)", True),
        ("model = AutoModel.from_config(AutoConfig.from_pretrained(path), trust_remote_code=False)", True),
        ("AutoConfig.from_pretrained(path, trust_remote_code=False)", False),
        ("GenerationConfig.from_pretrained(path)", False),
    ],
)
def test_the_rule_itself(text: str, is_fault: bool) -> None:
    assert bool(list(trusting_calls(text))) == is_fault
