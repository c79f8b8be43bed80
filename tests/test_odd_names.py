"""Every command on exams with odd names, with output that takes nothing but ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked

NAMES = {
    "not UTF-8": b"M\xfcl",
    "UTF-8": "Mü 体".encode(),
    "formula": b"a$b$\\x",
    "long": b"x" * 240,
}


def taken(folder: Path, names: list[str]) -> list[str]:
    """The names that this file system takes for folders."""
    folder /= "tried"
    folder.mkdir()
    good = []
    for name in names:
        try:
            (folder / os.fsdecode(NAMES[name])).mkdir()
        except OSError:
            continue
        good.append(name)
    return good


def check(code: int | None, printed: str, names: int) -> None:
    assert code == 0, printed
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if ": 1 exams (1 new)" in line]
    assert len(lines) == 2 * names


# The locale makes no difference to plain names. Only names that do may be lost on the way to another process.
@pytest.mark.slow(10)
def test_every_command_takes_exams_of_any_name_in_a_locale_of_ascii(tmp_path):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    setting = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    setting |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    names = taken(tmp_path, ["not UTF-8", "UTF-8"])
    assert names
    (tmp_path / "root").mkdir()
    script = Path(__file__).with_name("odd_names.py")
    done = subprocess.run(
        [sys.executable, script, "processes", tmp_path / "root", *(NAMES[name].hex() for name in names)],
        capture_output=True, encoding="ascii", env={**inherited, **setting},
    )  # fmt: skip
    check(done.returncode, done.stdout + done.stderr, len(names))


@pytest.mark.slow(5)
def test_every_command_takes_exams_of_any_name(tmp_path):
    names = taken(tmp_path, [*NAMES])
    assert names and sys.getfilesystemencoding() == "utf-8"
    (tmp_path / "root").mkdir()
    arguments = ["here", str(tmp_path / "root"), *(NAMES[name].hex() for name in names)]
    process = Forked("odd_names", arguments, os.environ, tmp_path / "printed.txt")
    _, printed = process.communicate(timeout=300)
    assert printed.isascii()
    check(process.returncode, printed, len(names))


def test_help_can_be_printed_in_ascii():
    done = subprocess.run(
        [sys.executable, "-m", "deepatlas", "prepare", "--help"], capture_output=True, encoding="ascii",
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "NAMES.json" in done.stdout
