"""The shape of the house: no import circle, few floors, no folder that holds most of the library, no long file.

Every import counts, wherever it stands: at the top, inside a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

LIBRARY, PROGRAMS = "wellread", ("launch", "finetune", "pretrain", "eval")
FOLDERS = (LIBRARY, *PROGRAMS, "scripts", "bench")
FLOORS = 7
SHARE = 0.25
"""Largest part of the library's lines that one of its folders holds."""
FILE, FUNCTION, TEST_FILE = 350, 60, 500
"""Most lines of a file and of a function in the library and the programs, and of a file of tests or benchmarks."""

Graph = Mapping[str, set[str]]
"""What each name imports."""


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, Path]:
    """Every module of the project by its dotted name; a package is its __init__.py."""
    found = {dotted(path.relative_to(root)): path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    assert {LIBRARY, *PROGRAMS} <= found.keys()
    return found


@pytest.fixture(scope="module")
def graph(files: dict[str, Path]) -> Graph:
    return {name: imported(name, path.read_text(), files) for name, path in files.items()}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, text: str, known: Mapping[str, object]) -> set[str]:
    """Which of the `known` modules the module `name` imports: of `from x import y`, x.y where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import; write the whole name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else f"{node.module}" for each in whole}
    return found & known.keys() - {name}


def circles(graph: Graph) -> list[list[str]]:
    """Groups of names that import one another, directly or through others."""
    reached = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(n for n in reached[name] if name in reached[n]) for name in graph if name in reached[name]}
    return sorted(sorted(group) for group in groups)


def reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each name: 1 for what imports nothing, else one above the highest of what it imports."""
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max(map(floor, graph[name]), default=0)
        return found[name]

    for name in graph:
        floor(name)
    return found


def rooms(graph: Graph, files: dict[str, Path]) -> dict[str, set[str]]:
    """The graph of what lies directly in the library: its files and folders."""
    inside = [name for name in graph if room_of(name) or (name == LIBRARY and defines(files[name]))]
    found: dict[str, set[str]] = {room_of(name): set() for name in inside}
    for name in inside:
        found[room_of(name)] |= {room_of(other) for other in graph[name] if room_of(other) in found}
    return {room: others - {room} for room, others in found.items()}


def room_of(name: str) -> str:
    """The room of a module of the library; the package itself, and what lies elsewhere, has none."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == LIBRARY else ""


def defines(path: Path) -> bool:
    """Whether a module defines more than constants, and not only hands on the names of others."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, line and number of lines of each function, those inside others included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def told(problems: list[str]) -> str:
    return f"{len(problems)}:\n  " + "\n  ".join(problems)


# --- the tests' own tools


def test_how_imports_are_found() -> None:
    known = dict.fromkeys(["a", "a.b", "a.b.c", "a.d", "e"])
    text = "import e, json\ndef f():\n    from a import b, d, x\n    from a.b.c import C\n    from other import c\n"
    assert imported("e.f", text, known) == {"e", "a.b", "a.d", "a", "a.b.c"}
    assert imported("a.b.c", "from a.b.c import self\nif TYPE_CHECKING:\n    import a.d\n", known) == {"a.d"}


def test_how_circles_and_floors_are_found() -> None:
    tree = {"roof": {"hall", "cellar"}, "hall": {"stairs"}, "stairs": {"cellar"}, "cellar": set()}
    assert circles(tree) == []
    assert floors(tree) == {"cellar": 1, "stairs": 2, "hall": 3, "roof": 4}
    assert circles(tree | {"cellar": {"hall"}, "shed": {"roof"}}) == [["cellar", "hall", "stairs"]]


# --- the house


def test_no_import_circle(graph: Graph) -> None:
    found = [" <-> ".join(group) for group in circles(graph)]
    assert not found, f"import circles: {told(found)}"


def test_no_circle_between_rooms(graph: Graph, files: dict[str, Path]) -> None:
    found = [" <-> ".join(group) for group in circles(rooms(graph, files))]
    assert not found, f"rooms of {LIBRARY}/ that import one another: {told(found)}"


def test_few_floors(graph: Graph, files: dict[str, Path]) -> None:
    plan = rooms(graph, files)
    assert not circles(plan), "a circle has no floors"
    levels = floors(plan)
    highest = max(levels.values())
    shown = [
        f"{level} {' '.join(sorted(room or LIBRARY for room in levels if levels[room] == level))}"
        for level in range(highest, 0, -1)
    ]
    assert highest <= FLOORS, f"{LIBRARY}/ has {highest} floors, at most {FLOORS} are allowed; {told(shown)}"


def test_no_folder_holds_most_of_the_library(files: dict[str, Path]) -> None:
    sizes: Counter[str] = Counter()
    for name, path in files.items():
        if name.split(".")[0] == LIBRARY:
            sizes[room_of(name)] += lines(path)
    found = [
        f"{LIBRARY}/{room}: {size:,} of {sizes.total():,} lines, {size / sizes.total():.1%}"
        for room, size in sizes.most_common()
        if size > SHARE * sizes.total()
    ]
    assert not found, f"folders above {SHARE:.0%} of the library: {told(found)}"


def test_no_long_file(root: Path, files: dict[str, Path]) -> None:
    limits = {path: TEST_FILE if name.split(".")[0] == "bench" else FILE for name, path in files.items()}
    limits |= dict.fromkeys((root / "tests").rglob("*.py"), TEST_FILE)
    found = [
        f"{path.relative_to(root)}: {lines(path)} lines, at most {limit}"
        for path, limit in sorted(limits.items())
        if lines(path) > limit
    ]
    assert not found, f"long files: {told(found)}"


def test_no_long_function(root: Path, files: dict[str, Path]) -> None:
    found = [
        f"{path.relative_to(root)}:{line} {function}: {count} lines, at most {FUNCTION}"
        for name, path in sorted(files.items())
        if name.split(".")[0] != "bench"
        for function, line, count in functions(path.read_text())
        if count > FUNCTION
    ]
    assert not found, f"long functions: {told(found)}"


def test_locks_are_imported_where_they_are_taken(root: Path, files: dict[str, Path]) -> None:
    """A record is read on systems that have no fcntl too, so no module of the library needs it to be imported."""
    found = [
        f"{path.relative_to(root)}:{line}"
        for name, path in sorted(files.items())
        if name.split(".")[0] == LIBRARY
        for line, module in when_imported(ast.parse(path.read_text()))
        if module == "fcntl"
    ]
    assert not found, f"fcntl at the top of {told(found)}"


def when_imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each module that a module imports when it is itself imported: not those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"{node.module}"
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from when_imported(node)


@pytest.mark.parametrize("unit", ["GIB", "MIB"])
def test_units_are_defined_once(unit: str, root: Path, files: dict[str, Path]) -> None:
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(files.values())
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.lstrip("_") == unit
    ]
    assert len(found) == 1, f"{unit} is defined in {told(found)}"
    assert found[0].startswith(f"{LIBRARY}/units.py:")
