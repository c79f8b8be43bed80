"""Every command on exams with odd names, with output that takes nothing but ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = {
    "not UTF-8": b"M\xfcl",
    "UTF-8": "Mü 体".encode(),
    "formula": b"a$b$\\x",
    "long": b"x" * 240,
}


def taken(folder: Path, names: list[str]) -> list[str]:
    """The names that this file system takes."""
    good = []
    for name in names:
        try:
            (folder / os.fsdecode(NAMES[name])).mkdir()
        except OSError:
            continue
        good.append(name)
    return good


# The locale makes no difference to plain names. Only names that do may be lost on the way to another process.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("locale", "names", "where"),
    [("ascii", ["not UTF-8", "UTF-8"], "processes"), ("utf-8", [*NAMES], "here")],
)
def test_every_command_takes_exams_of_any_name(tmp_path, locale, names, where):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    setting = {"LC_ALL": "C", "PYTHONUTF8": "0"} if locale == "ascii" else {"LC_ALL": "C.UTF-8"}
    setting |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "tried").mkdir()
    names = taken(tmp_path / "tried", names)
    assert names
    (tmp_path / "root").mkdir()
    script = Path(__file__).with_name("odd_names.py")
    done = subprocess.run(
        [sys.executable, script, where, tmp_path / "root", *(NAMES[name].hex() for name in names)],
        capture_output=True, encoding="ascii", env={**inherited, **setting},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if ": 2 exams (2 new)" in line]
    assert len(lines) == 2 * len(names)


def test_help_can_be_printed_in_ascii():
    done = subprocess.run(
        [sys.executable, "-m", "deepatlas", "prepare", "--help"], capture_output=True, encoding="ascii",
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "NAMES.json" in done.stdout
