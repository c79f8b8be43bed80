"""Run Python in a process with a small file system of its own, which is read-only or soon full."""

from __future__ import annotations

import ctypes
import os
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from forked import Forked

# Of sched.h: a name space of users, and one of mounts.
_NEWUSER, _NEWNS = 0x10000000, 0x00020000
_CANNOT = 77


def run_mounted(script: str, cwd: Path, options: str) -> list[str]:
    """The lines that ``script`` prints; the folder ``mounted`` in ``cwd`` is a tmpfs with these mount options.

    Skips the test if processes may not mount file systems.
    """
    (cwd / "mounted").mkdir()
    (cwd / "script.py").write_text(script)
    process = Forked("mounted", [str(cwd), options], os.environ, cwd.parent / f"{cwd.name}.txt")
    _, printed = process.communicate(timeout=300)
    if process.returncode == _CANNOT:
        pytest.skip(f"no file system can be mounted here ({printed.strip()[:80]})")
    said = (cwd / "stderr.txt").read_text(encoding="utf-8")
    assert process.returncode == 0 and "Traceback" not in said, said
    return printed.splitlines()


def main(arguments: Sequence[str]) -> int:
    """Mount the file system for this process alone and run the script in it, for forked.Forked."""
    folder, options = arguments
    os.chdir(folder)
    # Only a process of one thread may have users of its own. This must not look like a machine that forbids it.
    assert len(os.listdir("/proc/self/task")) == 1
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWUSER | _NEWNS):
        print("unshare:", os.strerror(ctypes.get_errno()))
        return _CANNOT
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    # Nothing that is mounted here is seen outside.
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", options, "none", "mounted"]):
        if not shutil.which("mount") or subprocess.run(["mount", *command]).returncode:
            return _CANNOT
    os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT, 0o600), 2)
    runpy.run_path("script.py", run_name="__main__")
    return 0
