"""Warnings for the page: what is said while a request is answered, and by no other thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepatlas.errors import DataWarning

_mine = threading.local()
_lock = threading.Lock()
# How many blocks listen, and what undoes the listening. The filters of warnings belong to the process, so that a block
# of their own for every thread could end in another order than it began, and leave them changed.
_open: dict[str, Any] = {"count": 0, "undo": None}


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the warnings of this thread within the block, each once, instead of printing them.

    Within a block in a block, the inner one hears. Warnings of other threads go where they would have gone.
    """
    _begin()
    before, lines = getattr(_mine, "lines", None), list[str]()
    _mine.lines = lines
    try:
        yield lines
    finally:
        _mine.lines = before
        _end()


def _begin() -> None:
    with _lock:
        _open["count"] += 1
        if _open["count"] > 1:
            return
        undo = warnings.catch_warnings()
        undo.__enter__()
        otherwise = warnings.showwarning
        # Each time, and not only once for each line of code, as another exam may have the same warning.
        warnings.simplefilter("always", DataWarning)

        def show(message: Warning | str, *more: Any, **others: Any) -> None:
            lines = getattr(_mine, "lines", None)
            if lines is None:
                otherwise(message, *more, **others)
            elif (line := " ".join(str(message).split())) not in lines:
                lines.append(line)

        warnings.showwarning = show
        _open["undo"] = undo


def _end() -> None:
    with _lock:
        _open["count"] -= 1
        if not _open["count"]:
            _open["undo"].__exit__(None, None, None)
