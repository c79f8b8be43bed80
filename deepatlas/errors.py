"""The errors that a user is meant to read: one line, naming the thing and the cure."""

from __future__ import annotations

import sys
from collections.abc import Callable

PROGRAM = "deepatlas"


class DeepAtlasError(ValueError):
    """Something the user can put right. ``str(error)`` is a single line: what, where, cure."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class DataError(DeepAtlasError):
    """An exam, label file, data directory, store or output path that cannot be used."""


class WriteError(DataError):
    """An output path that cannot be written; ``__cause__`` is the :class:`OSError`."""


class PassingError(DataError):
    """Data that cannot be used now and may be usable later, for example because a disk failed or a file changed."""


class DataWarning(UserWarning):
    """An exam that can be used but looks odd (for example, not in Hounsfield units)."""


def guarded(run: Callable[..., int], *arguments: object) -> int:
    """``run(*arguments)`` with an error or Ctrl-C as one line on stderr; returns the exit code (1, 130)."""
    try:
        return run(*arguments)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stderr.close()
        return 1
    except (DeepAtlasError, OSError) as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{PROGRAM}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
