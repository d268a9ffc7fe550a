"""Names of torch that the project uses, and what a torch has under them.

    python tests/support/torch_names.py

records the installed torch in tests/golden/torch-VERSION.json: name -> its parameters, or null if Python has none.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("wellread", "launch", "finetune", "pretrain", "eval", "scripts")
ANY = "*"
"""A parameter of this name takes any keyword."""


def used(root: Path = ROOT) -> dict[str, set[str]]:
    """Every name of torch in the code, as ``torch.cuda.set_device``, and the keywords with which it is called."""
    names: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for name, keywords in _in_file(ast.parse(path.read_text(encoding="utf-8"))):
                names.setdefault(name, set()).update(keywords)
    return names


def _in_file(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            of_torch = [name for name in node.names if name.name.split(".")[0] == "torch"]
            aliases |= {name.asname or "torch": name.name if name.asname else "torch" for name in of_torch}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            aliases |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    yield from ((name, set()) for name in aliases.values())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keywords = {
        id(node.func): {keyword.arg for keyword in node.keywords if keyword.arg}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner and (name := _name(node, aliases)):
            yield name, keywords.get(id(node), set())


def _name(node: ast.expr, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Attribute):
        before = _name(node.value, aliases)
        return before and f"{before}.{node.attr}"
    return aliases.get(node.id) if isinstance(node, ast.Name) else None


def look_up(name: str) -> tuple[bool, list[str] | None]:
    """Whether the installed torch has `name`, and its parameters; None if Python has none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            for part in parts[length:]:
                value = getattr(value, part)
        except AttributeError:
            return False, None
        return True, _parameters(value)
    return False, None


def _parameters(value: Any) -> list[str] | None:
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
    return names if len(names) == len(parameters) else [*names, ANY]


def main() -> None:
    """Record the installed torch."""
    import torch

    version = torch.__version__.partition("+")[0]
    recorded = {name: parameters for name in sorted(used()) for exists, parameters in [look_up(name)] if exists}
    path = ROOT / "tests" / "golden" / f"torch-{version}.json"
    path.write_text(json.dumps(recorded, indent=1) + "\n")
    print(path, len(recorded), "names; not found:", *(name for name in sorted(used()) if name not in recorded))


if __name__ == "__main__":
    main()
