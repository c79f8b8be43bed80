"""Imports of the package run in one direction: those that the table in CONTRIBUTING.md allows, and in no circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepatlas"


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, wherever in it: at the top, in a function, for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            # ``from package import module`` imports the module, ``from module import name`` the name's module.
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in modules else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found |= {n for n in names if n in modules}
    return found - {name}


def room(module: str) -> str:
    """The room of a module as the table calls it: the first part below the package, or ``deepatlas`` for its face."""
    return module.split(".")[1] if "." in module else module


def allowed() -> dict[str, set[str]]:
    """The table of arrows in CONTRIBUTING.md: a line ``room <- what it may import`` for every room."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- arrows -->\n```\n(.*?)```", text, re.S)
    assert table, "CONTRIBUTING.md has no table of arrows"
    lines = [line.partition("<-") for line in table[1].splitlines() if "<-" in line]
    return {name.strip(): set(others.split()) for name, _, others in lines}


def test_every_import_is_one_of_the_allowed_arrows():
    modules, arrows = files(), allowed()
    assert set(arrows) == {room(name) for name in modules}, "the table names other rooms than there are"
    broken = [
        f"{name} imports {other}: {room(name)} <- {room(other)} is not in the table"
        for name, path in sorted(modules.items())
        for other in sorted(imports(name, path, set(modules)))
        if room(other) != room(name) and room(other) not in arrows[room(name)]
    ]
    assert not broken, "\n".join(broken)


def test_no_arrow_of_the_table_is_unused():
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


@pytest.mark.parametrize("of", ["files", "rooms"])
def test_there_is_no_circle(of):
    modules = files()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = imports(name, path, set(modules))
        if of == "rooms":
            graph.setdefault(room(name), set()).update({room(other) for other in found} - {room(name)})
        else:
            graph[name] = found
    TopologicalSorter(graph).prepare()
