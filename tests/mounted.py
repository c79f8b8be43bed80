"""Run Python in a process with a small file system of its own, which is read-only or soon full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run_mounted(script: str, cwd: Path, options: str) -> list[str]:
    """The lines that ``script`` prints; the folder ``mounted`` in ``cwd`` is a tmpfs with these mount options.

    Skips the test if processes may not mount file systems.
    """
    (cwd / "mounted").mkdir()
    (cwd / "script.py").write_text(script)
    command = f"mount -t tmpfs -o {options} none mounted && exec '{sys.executable}' script.py"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command] if shutil.which("unshare") else ["false"],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr or not shutil.which("unshare"):
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()[:80]})")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()
