"""Errors for users: each message is one line that names the thing, the problem and the cure."""

from __future__ import annotations

import difflib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from deepatlas.signals import ended_as_by_ctrl_c

PROGRAM = "deepatlas"


class DeepAtlasError(ValueError):
    """A problem that the user can solve. ``str(error)`` is a single line: all white space becomes single spaces."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class DataError(DeepAtlasError):
    """An exam, label file, data directory, store or output path that cannot be used."""


class KindError(DataError):
    """An exam whose values are of another kind than those that are expected, such as an MR in place of a CT."""


class WriteError(DataError):
    """A file or folder that cannot be written: a full disk, a missing permission, a path that is taken."""


class PassingError(DataError):
    """Data that cannot be used now and may be usable later, for example because a disk failed or a file changed."""


class DataWarning(UserWarning):
    """An exam can be used but looks unusual, for example because its values do not seem to be Hounsfield units."""


def did_you_mean(name: str, known: Iterable[str], *, most: int = 8) -> str:
    """The part of a message about an unknown ``name``: the known names that look like it, and otherwise the first."""
    names = list(known)
    if not names:
        return "there are none"
    folded: dict[str, str] = {}
    for other in names:
        folded.setdefault(other.casefold(), other)
    near = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(folded[n] for n in near)}?"
    some = ", ".join(names[:most])
    return f"there are {len(names)}: {some} …" if len(names) > most else f"there are: {some}"


def lenient_output() -> None:
    """Let stdout and stderr write any text, for example a path with letters that an ASCII terminal does not have.

    What cannot be written appears as ``\\xfc``, so that no command fails after its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line on stderr, without the line of code that Python shows.

    It takes the place of ``warnings.showwarning``.
    """
    print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Warnings are lines of ours within the block, and matplotlib keeps to itself where its cache is."""
    drawing = logging.getLogger("matplotlib")
    level = drawing.level
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        drawing.setLevel(logging.ERROR)
        try:
            yield
        finally:
            drawing.setLevel(level)


def skipped_line(exam: str, reason: str) -> str:
    """The line on stderr about an exam that is left out."""
    return f"{PROGRAM}: skipped {exam}: {' '.join(reason.split())}"


def guarded(run: Callable[..., int], *arguments: object, as_json: bool = False) -> int:
    """Run a command and return its exit code.

    An error is printed as one line on stderr and gives 1; Ctrl-C gives 130, and so do SIGTERM, by which Slurm and
    docker end a command, and SIGHUP, which a closed terminal sends: what Ctrl-C keeps is kept, and processes are
    ended. Warnings are lines of the same form. With ``as_json``, which a command passes on from ``--json``, an error is
    also printed on stdout, as ``{"error": text}``, so that what is printed there is one JSON object in any case.
    """
    try:
        with _own_warnings(), ended_as_by_ctrl_c(replace=False):
            return run(*arguments)
    except BrokenPipeError:
        # The program that reads our output (head, less) has exited.
        sys.stderr.close()
        return 1
    except (DeepAtlasError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"{PROGRAM}: error: {text}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt as stop:
        text, code = str(stop) or "interrupted", 130
        print(f"{PROGRAM}: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": text}), flush=True)
    return code
