"""Signals that end a program as Ctrl-C does, so that it can keep what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Of these, a closed terminal or a lost SSH connection sends SIGHUP, which Windows does not have.
_NAMES = ("SIGTERM", "SIGHUP")


@contextmanager
def ended_as_by_ctrl_c(line: str = "", *, replace: bool = True) -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise :class:`KeyboardInterrupt`, with the name of the signal and
    ``line`` as its message.

    Later ones are ignored, since shells and supervisors send several in a row, and the first is being obeyed. A signal
    that was to be ignored (``nohup``) still is, and without ``replace`` one that somebody else handles is left to them.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    numbers = [n for n in numbers if _ours(n, replace)]

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}{line}")

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ours(number: int, replace: bool) -> bool:
    """Whether a signal may be handled here."""
    now = signal.getsignal(number)
    return now is not signal.SIG_IGN and (replace or now is signal.SIG_DFL)
