"""A library for LD_PRELOAD under which no file system has locks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
static int none(void) { errno = atoi(getenv("NO_LOCKS")); return -1; }
int flock(int handle, int operation) { return none(); }
int lockf(int handle, int command, off_t length) { return none(); }
static int pass(const char *name, int handle, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) return none();
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
    return real(handle, command, argument);
}
int fcntl(int handle, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    return pass("fcntl", handle, command, argument);
}
int fcntl64(int handle, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    return pass("fcntl64", handle, command, argument);
}
"""


def without_locks(folder: Path, error: int) -> dict[str, str]:
    """Environment variables under which locks fail with this error number; skips where there is no compiler."""
    compiler = shutil.which("cc")
    library = folder / "nolocks.so"
    (folder / "nolocks.c").write_text(SOURCE)
    command = [compiler or "false", "-shared", "-fPIC", "-o", library, folder / "nolocks.c", "-ldl"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no C compiler makes a library for LD_PRELOAD")
    return {"LD_PRELOAD": str(library), "NO_LOCKS": str(error)}
