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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("locale", ["ascii", "utf-8"])
def test_every_command_takes_exams_of_any_name(tmp_path, name, locale):
    if name in ("formula", "long") and locale == "ascii":
        pytest.skip("the locale makes no difference to plain names")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    setting = {"LC_ALL": "C", "PYTHONUTF8": "0"} if locale == "ascii" else {"LC_ALL": "C.UTF-8"}
    setting |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        (tmp_path / "root" / os.fsdecode(NAMES[name])).mkdir(parents=True)
    except OSError:
        pytest.skip("this file system does not take the name")
    script = Path(__file__).with_name("odd_names.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "root", NAMES[name].hex()],
        capture_output=True, encoding="ascii", env={**inherited, **setting},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if ": 2 exams (2 new)" in line]
    assert len(lines) == 2


def test_help_can_be_printed_in_ascii():
    done = subprocess.run(
        [sys.executable, "-m", "deepatlas", "prepare", "--help"], capture_output=True, encoding="ascii",
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "NAMES.json" in done.stdout
