"""The structure of the code: no import cycle, few layers, no folder with most of the library, no long file.

Every import counts: at the top of a module, inside a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

LIBRARY, PROGRAMS = "wellread", ("launch", "finetune", "pretrain", "eval")
FOLDERS = (LIBRARY, *PROGRAMS, "scripts", "bench")
LAYERS = 7
SHARE = 0.25
"""Largest share of the library's lines that one folder may have."""
FILE, FUNCTION, TEST_FILE = 350, 60, 500
"""Most lines of a file and a function of the library and the programs, and of a file of tests or benchmarks."""

Graph = Mapping[str, set[str]]
"""What each name imports."""


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, Path]:
    """Path of every module of the project by its dotted name; a package is its __init__.py."""
    paths = {dotted(path.relative_to(root)): path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    assert {LIBRARY, *PROGRAMS} <= paths.keys()
    return paths


@pytest.fixture(scope="module")
def graph(files: dict[str, Path]) -> Graph:
    return {name: imported(name, path.read_text(), files) for name, path in files.items()}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, text: str, modules: Mapping[str, object]) -> set[str]:
    """Which of the `modules` the module `name` imports. `from x import y` is x.y if that is a module, else x."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import; write the whole name"
            candidates = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {each if each in modules else f"{node.module}" for each in candidates}
    return names & modules.keys() - {name}


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of names that import each other, directly or through others."""
    reached = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(n for n in reached[name] if name in reached[n]) for name in graph if name in reached[name]}
    return sorted(sorted(group) for group in groups)


def reachable(graph: Graph, start: str) -> set[str]:
    names: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += graph[name]
    return names


def layers_of(graph: Graph) -> dict[str, int]:
    """The layer of each name: 1 if it imports nothing, else one above the highest that it imports."""
    levels: dict[str, int] = {}

    def layer_of(name: str) -> int:
        if name not in levels:
            levels[name] = 1 + max(map(layer_of, graph[name]), default=0)
        return levels[name]

    for name in graph:
        layer_of(name)
    return levels


def packages_of(graph: Graph, files: dict[str, Path]) -> dict[str, set[str]]:
    """The graph of the files and folders directly inside the library."""
    inside = [name for name in graph if package_of(name) or (name == LIBRARY and defines(files[name]))]
    packages: dict[str, set[str]] = {package_of(name): set() for name in inside}
    for name in inside:
        packages[package_of(name)] |= {package_of(other) for other in graph[name] if package_of(other) in packages}
    return {package: imports - {package} for package, imports in packages.items()}


def package_of(name: str) -> str:
    """File or folder directly inside the library that a module belongs to; empty for other modules and the package."""
    top, _, inner = name.partition(".")
    return inner.partition(".")[0] if top == LIBRARY else ""


def defines(path: Path) -> bool:
    """Whether a module defines functions or classes, and does not only export names of others."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, line and number of lines of each function, also of nested ones."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def listed(problems: list[str]) -> str:
    return f"{len(problems)}:\n  " + "\n  ".join(problems)


# --- the functions above


def test_imports_of_a_module() -> None:
    modules = dict.fromkeys(["a", "a.b", "a.b.c", "a.d", "e"])
    text = "import e, json\ndef f():\n    from a import b, d, x\n    from a.b.c import C\n    from other import c\n"
    assert imported("e.f", text, modules) == {"e", "a.b", "a.d", "a", "a.b.c"}
    assert imported("a.b.c", "from a.b.c import self\nif TYPE_CHECKING:\n    import a.d\n", modules) == {"a.d"}


def test_cycles_and_layers_of_a_graph() -> None:
    tree = {"roof": {"hall", "cellar"}, "hall": {"stairs"}, "stairs": {"cellar"}, "cellar": set()}
    assert cycles(tree) == []
    assert layers_of(tree) == {"cellar": 1, "stairs": 2, "hall": 3, "roof": 4}
    assert cycles(tree | {"cellar": {"hall"}, "shed": {"roof"}}) == [["cellar", "hall", "stairs"]]


# --- the code


def test_no_import_cycle(graph: Graph) -> None:
    problems = [" <-> ".join(group) for group in cycles(graph)]
    assert not problems, f"import cycles: {listed(problems)}"


def test_no_cycle_between_folders(graph: Graph, files: dict[str, Path]) -> None:
    problems = [" <-> ".join(group) for group in cycles(packages_of(graph, files))]
    assert not problems, f"files and folders of {LIBRARY}/ that import each other: {listed(problems)}"


def test_few_layers(graph: Graph, files: dict[str, Path]) -> None:
    plan = packages_of(graph, files)
    assert not cycles(plan), "a cycle has no layers"
    levels = layers_of(plan)
    highest = max(levels.values())
    layers = [
        f"{level} {' '.join(sorted(package or LIBRARY for package in levels if levels[package] == level))}"
        for level in range(highest, 0, -1)
    ]
    assert highest <= LAYERS, f"{LIBRARY}/ has {highest} layers, at most {LAYERS} are allowed; {listed(layers)}"


def test_no_folder_holds_most_of_the_library(files: dict[str, Path]) -> None:
    sizes: Counter[str] = Counter()
    for name, path in files.items():
        if name.split(".")[0] == LIBRARY:
            sizes[package_of(name)] += lines(path)
    problems = [
        f"{LIBRARY}/{package}: {size:,} of {sizes.total():,} lines, {size / sizes.total():.1%}"
        for package, size in sizes.most_common()
        if size > SHARE * sizes.total()
    ]
    assert not problems, f"folders above {SHARE:.0%} of the library: {listed(problems)}"


def test_no_long_file(root: Path, files: dict[str, Path]) -> None:
    limits = {path: TEST_FILE if name.split(".")[0] == "bench" else FILE for name, path in files.items()}
    limits |= dict.fromkeys((root / "tests").rglob("*.py"), TEST_FILE)
    problems = [
        f"{path.relative_to(root)}: {lines(path)} lines, at most {limit}"
        for path, limit in sorted(limits.items())
        if lines(path) > limit
    ]
    assert not problems, f"long files: {listed(problems)}"


def test_no_long_function(root: Path, files: dict[str, Path]) -> None:
    problems = [
        f"{path.relative_to(root)}:{line} {function}: {count} lines, at most {FUNCTION}"
        for name, path in sorted(files.items())
        if name.split(".")[0] != "bench"
        for function, line, count in functions(path.read_text())
        if count > FUNCTION
    ]
    assert not problems, f"long functions: {listed(problems)}"


def test_fcntl_is_imported_where_it_is_used(root: Path, files: dict[str, Path]) -> None:
    """Reading a record also works on systems without fcntl, so no module of the library imports it at the top."""
    problems = [
        f"{path.relative_to(root)}:{line}"
        for name, path in sorted(files.items())
        if name.split(".")[0] == LIBRARY
        for line, module in when_imported(ast.parse(path.read_text()))
        if module == "fcntl"
    ]
    assert not problems, f"fcntl is imported at the top of {listed(problems)}"


def when_imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each module that is imported at the top level, and not inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"{node.module}"
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from when_imported(node)


@pytest.mark.parametrize("unit", ["GIB", "MIB"])
def test_units_are_defined_once(unit: str, root: Path, files: dict[str, Path]) -> None:
    problems = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(files.values())
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.lstrip("_") == unit
    ]
    assert len(problems) == 1, f"{unit} is defined in {listed(problems)}"
    assert problems[0].startswith(f"{LIBRARY}/units.py:")
