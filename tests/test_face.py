"""The public face: what ``import deepatlas`` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepatlas

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", deepatlas.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(deepatlas, name)
    assert name in dir(deepatlas)
    if name != "__version__":
        assert value.__name__ == name and inspect.getdoc(value)
        assert f"`{name}`" in deepatlas.__doc__, "the overview of the package lacks it"


def test_public_names_are_sorted_and_a_wrong_one_is_an_attribute_error():
    assert deepatlas.__all__ == sorted(set(deepatlas.__all__))
    misspelt = "sgement"
    with pytest.raises(AttributeError, match="no attribute 'sgement'"):
        getattr(deepatlas, misspelt)


@pytest.mark.parametrize(
    "name",
    [
        "coordinates", "features", "segment", "template", "propagate", "locate", "register", "follow", "crop_exam",
        "load", "save", "to",
    ],
)  # fmt: skip
def test_every_method_of_a_model_is_documented(name):
    assert inspect.getdoc(getattr(deepatlas.Model, name))


def test_the_names_that_the_pages_use_are_public():
    used = set()
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    used |= {node.attr} if node.value.id == "deepatlas" else set()
                elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "deepatlas":
                    used |= {alias.name for alias in node.names}
    assert {"load", "Template"} <= used <= set(deepatlas.__all__)


def test_neither_the_import_nor_the_help_loads_anything_slow():
    code = (
        "import sys, deepatlas, deepatlas.cli.main as cli\n"
        "slow = {'torch', 'numpy', 'SimpleITK', 'matplotlib', 'h5py', 'pydicom'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    commands = ("train", "prepare", "template", "segment", "locate", "evaluate", "compare", "phantom", "info")
    assert all(f"\n    {command} " in done.stdout for command in commands)
