"""Processes that are forked from one that has imported everything: they start without seconds of imports.

The server that forks is the one of :mod:`multiprocessing`. It runs no op, so that no thread of OpenMP is lost in a
fork, and it is also where worker processes of ``deepatlas prepare`` come from.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOAD = [
    "deepatlas.intake.run.work",
    "deepatlas.train.experiment",
    "deepatlas.train.score",
    "deepatlas.cli.main",
    # What the first step of an optimiser and the first record of a run import.
    "torch._dynamo",
    "torch.distributed.run",
    "torch.utils.tensorboard",
]


class Forked:
    """``python -m MODULE ARGUMENTS`` in a session of its own; what it prints goes to a file. As subprocess.Popen.

    ``main`` is the function of the module that takes the arguments and returns the exit status.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], printed: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.printed = printed
        what = (module, list(arguments), dict(environment), os.getcwd(), str(printed))
        self._process = context.Process(target=_run, args=what)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[None, str]:
        """Wait for the end; returns what was printed where Popen returns stderr."""
        self._process.join(timeout)
        assert self.poll() is not None, f"not done after {timeout} s: {self.printed.read_text()}"
        return None, self.printed.read_text()

    @property
    def returncode(self) -> int | None:
        return self.poll()


def start_ranks(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], count: int, folder: Path
) -> list[Forked]:
    """As many processes of one job, which find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    return [
        Forked(
            module,
            arguments,
            {**environment, **job, "RANK": str(i), "LOCAL_RANK": str(i)},
            folder / f"rank{i}.txt",
        )
        for i in range(count)
    ]


def ranks(module: str, arguments: Sequence[str], environment: Mapping[str, str], count: int, folder: Path):
    """Run :func:`start_ranks` to its end; returns what each process printed."""
    started = start_ranks(module, arguments, environment, count, folder)
    printed = [one.communicate(300)[1] for one in started]
    assert [one.returncode for one in started] == [0] * count, printed
    return printed


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: str, printed: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in a terminal, also where the tests were started by nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(output, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if "OMP_NUM_THREADS" in environment:
        import torch

        # OpenMP read the variable when it was loaded.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    code = importlib.import_module(module).main(arguments)
    # multiprocessing ends its processes without them.
    atexit._run_exitfuncs()
    sys.exit(code)
