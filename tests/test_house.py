"""Imports of the package: only those that the table in CONTRIBUTING.md allows, and none in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepatlas"


def files() -> dict[str, Path]:
    """The file of every module of the package, by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports anywhere: at the top, in a function, or only for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            # ``from package import module`` imports that module; ``from module import name`` imports the module before
            # ``import``.
            names = [
                module if (module := f"{node.module}.{alias.name}") in modules else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found |= {n for n in names if n in modules}
    return found - {name}


def room(module: str) -> str:
    """The room of a module: the first part of its name below the package, or ``deepatlas`` for the face."""
    return module.split(".")[1] if "." in module else module


def allowed() -> dict[str, set[str]]:
    """The table in CONTRIBUTING.md, which has a line ``room <- the rooms it may import`` for every room."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- arrows -->\n```\n(.*?)```", text, re.S)
    assert table, "CONTRIBUTING.md has no table of allowed imports"
    lines = [line.partition("<-") for line in table[1].splitlines() if "<-" in line]
    return {name.strip(): set(others.split()) for name, _, others in lines}


@pytest.mark.slow(1)
def test_every_import_is_in_the_table():
    modules, arrows = files(), allowed()
    assert set(arrows) == {room(name) for name in modules}, (
        "the rooms of the table are not those of the package"
    )
    broken = [
        f"{name} imports {other}: {room(name)} <- {room(other)} is not in the table"
        for name, path in sorted(modules.items())
        for other in sorted(imports(name, path, set(modules)))
        if room(other) != room(name) and room(other) not in arrows[room(name)]
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.slow(1)
def test_every_entry_of_the_table_is_used():
    modules, arrows = files(), allowed()
    used = {
        (room(name), room(other))
        for name, path in modules.items()
        for other in imports(name, path, set(modules))
    }
    unused = [
        f"{name} <- {other}"
        for name, others in arrows.items()
        for other in others
        if (name, other) not in used
    ]
    assert not unused, unused


@pytest.mark.slow(1)
@pytest.mark.parametrize("of", ["files", "rooms"])
def test_no_imports_form_a_circle(of):
    modules = files()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = imports(name, path, set(modules))
        if of == "rooms":
            graph.setdefault(room(name), set()).update({room(other) for other in found} - {room(name)})
        else:
            graph[name] = found
    TopologicalSorter(graph).prepare()
