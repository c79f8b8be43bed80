"""SimpleITK, imported on first use, and what stands between it and the world: names of files, and the locale.

ITK takes file names as UTF-8: a name in another encoding ends the whole process (``M\\xfcller.nii.gz``), and so does
any name beyond ASCII where Python runs under an ASCII locale. Its NRRD library reads and writes numbers with the
decimal sign of the locale. So every file goes through :func:`itk_reads` or :func:`itk_writes`, which give ITK a link of
a plain name where the true one is not plain, and set the decimal sign to a point meanwhile.
"""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError

# Tried one after another, if the name of the temporary folder itself is not plain.
_PLACES = ("/tmp", "/var/tmp")

_lock = threading.Lock()
# How many calls of ITK are under way in threads of this process, and the locale before the first of them.
_calls, _before = 0, ""


def simpleitk() -> Any:
    """The SimpleITK module, with the warnings of its C++ library switched off: they would go to the terminal."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


@contextmanager
def itk_reads(path: Path, suffix: str, *, alone: bool = False, beside: str = "") -> Iterator[str]:
    """A name of ``path`` that ITK can open, for the time of the block.

    Args:
        path: an existing file.
        suffix: what the name has to end with, since ITK chooses the format by it.
        alone: give a name in a folder that holds nothing else.
        beside: the file of the voxels, as the header names it relative to its own folder; empty if there is none.

    Raises :class:`~deepatlas.errors.DataError` where no plain name can be made.
    """
    with decimal_point():
        if not alone and _is_plain(os.fspath(path)):
            yield os.fspath(path)
            return
        with _plain_folder(path) as folder:
            # A name that leads upwards from the header must not leave the private folder.
            home = folder.joinpath(*["d"] * Path(beside).parts.count(".."))
            home.mkdir(exist_ok=True, parents=True)
            _link(path, home / f"image{suffix}")
            if beside and not os.path.isabs(beside):
                target = Path(os.path.normpath(home / beside))
                target.parent.mkdir(exist_ok=True, parents=True)
                _link(path.parent / beside, target)
            yield str(home / f"image{suffix}")


@contextmanager
def itk_writes(path: Path) -> Iterator[str]:
    """A name under which ITK can write the new file ``path``, for the time of the block.

    The last part of ``path`` must be plain, as the names of :func:`deepatlas.files.atomic_path` are.
    """
    with decimal_point():
        if _is_plain(os.fspath(path)):
            yield os.fspath(path)
            return
        with _plain_folder(path) as folder:
            try:
                os.symlink(os.path.abspath(path.parent), folder / "to", target_is_directory=True)
            except OSError:
                # This system or this user cannot create symbolic links.
                yield str(folder / path.name)
                shutil.copyfile(folder / path.name, path)
                return
            yield str(folder / "to" / path.name)


@contextmanager
def decimal_point() -> Iterator[None]:
    """Numbers are written with a point within the block, whatever the locale of the process.

    The locale belongs to the process, so threads share it, and the last one that leaves restores it. It is restored
    also where a library has changed it: GDCM leaves the process in the locale "C".
    """
    global _calls, _before
    with _lock:
        if _calls == 0:
            _before = locale.setlocale(locale.LC_ALL)
            if locale.localeconv()["decimal_point"] != ".":
                locale.setlocale(locale.LC_NUMERIC, "C")
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0 and locale.setlocale(locale.LC_ALL) != _before:
                with suppress(locale.Error):
                    locale.setlocale(locale.LC_ALL, _before)


def _is_plain(name: str) -> bool:
    """Whether ITK, which takes names as UTF-8, finds the file that Python means."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return sys.getfilesystemencoding().lower() == "utf-8"


@contextmanager
def _plain_folder(path: Path) -> Iterator[Path]:
    """A private folder with a plain name for links to ``path``."""
    places = [place for place in (tempfile.gettempdir(), *_PLACES) if _is_plain(place)]
    place = next((place for place in places if os.access(place, os.W_OK | os.X_OK)), None)
    if place is None:
        raise DataError(
            f"{path}: its name is not plain ASCII, and neither is that of the temporary folder, where a link to it "
            "could be made; set TMPDIR to a folder with a plain name"
        )
    with tempfile.TemporaryDirectory(prefix="deepatlas-", dir=place) as folder:
        yield Path(folder)


def _link(path: Path, link: Path) -> None:
    try:
        os.symlink(os.path.abspath(path), link)
    except OSError:
        # This system or this user cannot create symbolic links.
        shutil.copyfile(path, link)
