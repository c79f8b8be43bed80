"""A command under a limit on the size of files, which stands for a full disk; for forked.Forked."""

from __future__ import annotations

import importlib
import resource
import signal


def main(arguments: list[str]) -> int:
    """``main`` of a module, after the limit in bytes and the name of the module."""
    limit, module, *rest = arguments
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    return importlib.import_module(module).main(rest)
