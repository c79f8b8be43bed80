"""Find every file below a source, each once and always in the same order.

Only folders are opened: a FIFO or a device among the images cannot block the run.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.files import write_error
from deepatlas.intake.find.extraction import is_junk, shown
from deepatlas.io.dicom.found import Found, Refusal

try:
    import fcntl
except ImportError:
    # On Windows.
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".deepatlas-scratch-"
_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PERMISSIONS = "check its permissions"
_VANISHED = "vanished while the source was read; put it back and run again"


def walk(
    src: str | os.PathLike[str],
    scratch: Path,
    refused: list[Refusal],
    *,
    skip: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Found]:
    """Yield every regular file below ``src``, which is a folder or a single file.

    The real tree comes first, sorted by name, then what only symbolic links lead to. No folder or file is yielded
    twice, so that loops end. Hidden files and what operating systems leave behind (``.DS_Store``, ``Thumbs.db``,
    ``__MACOSX``) are passed over silently. Archives are treated like any other file.

    Args:
        src: where to look.
        scratch: an existing folder for aliases of files whose names no library can open (see
            :func:`scratch_folder`); the paths that are yielded are valid as long as it exists.
        refused: a refusal is appended for broken links and loops, folders and files without permission, FIFOs,
            sockets, devices, and files that vanish during the walk.
        skip: files and folders to leave out, such as the destination if it lies below the source.

    Raises :class:`~deepatlas.errors.DataError` if ``src`` itself is missing or cannot be read.
    """
    src = Path(src)
    try:
        is_folder = src.is_dir()
        status = os.stat(src)
        if is_folder:
            os.scandir(src).close()
    except FileNotFoundError as error:
        raise DataError(f"{shown(str(src))}: no such file or folder; check the path") from error
    except OSError as error:
        raise DataError(f"{shown(str(src))}: cannot read: {error.strerror}; {_PERMISSIONS}") from error
    walker = _Walker(src, scratch, refused, skip)
    if is_folder:
        yield from walker.folder(src, "")
        yield from walker.links()
    elif stat.S_ISREG(status.st_mode):
        yield from walker.regular(str(src), src.name, status)
    else:
        raise DataError(f"{shown(str(src))}: not a file or folder; give a folder of exams")


class _Walker:
    def __init__(
        self,
        src: Path,
        scratch: Path,
        refused: list[Refusal],
        skip: Iterable[str | os.PathLike[str]],
    ) -> None:
        self.src, self.scratch, self.refused = src, scratch, refused
        self.folders = {key for path in (scratch, *skip) if (key := _identity(path))}
        self.skipped = set(self.folders)
        # Files that links led to.
        self.targets: set[tuple[int, int]] = set()
        # Links that have not been followed yet: path and name.
        self.waiting: list[tuple[str, str]] = []
        self.count = 0
        self.own: Path | None = None

    def refuse(self, name: str, reason: str, *, passing: bool = False) -> None:
        self.refused.append(Refusal(shown(name), reason, passing=passing))

    def folder(self, path: Path, name: str) -> Iterator[Found]:
        """The real files below a folder. Its links are kept for :meth:`links`."""
        stack = [iter(self.entries(str(path), name))]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            path_here, name_here = entry
            try:
                status = os.lstat(path_here)
            except OSError as error:
                self.unreadable(name_here, error)
                continue
            if stat.S_ISLNK(status.st_mode):
                self.waiting.append(entry)
            elif stat.S_ISDIR(status.st_mode):
                stack.append(iter(self.entries(path_here, name_here)))
            else:
                yield from self.regular(path_here, name_here, status)

    def entries(self, path: str, name: str) -> list[tuple[str, str]]:
        """Path and name of what lies in a folder, sorted; empty if the folder was seen before."""
        try:
            status = os.stat(path)
            key = (status.st_dev, status.st_ino)
            if key in self.folders:
                return []
            self.folders.add(key)
            with os.scandir(path) as listing:
                names = [entry.name for entry in listing if not is_junk(entry.name)]
        except OSError as error:
            self.unreadable(name or self.src.name, error)
            return []
        path = self.alias(path)
        names.sort(key=os.fsencode)
        return [(os.path.join(path, n), f"{name}/{n}" if name else n) for n in names]

    def links(self) -> Iterator[Found]:
        """The files that symbolic links lead to, unless they were seen before. Links found there are followed later."""
        while self.waiting:
            batch, self.waiting = sorted(self.waiting, key=lambda e: os.fsencode(e[1])), []
            for path, name in batch:
                try:
                    status = os.stat(path)
                    real = os.path.realpath(path)
                except OSError as error:
                    if error.errno == errno.ELOOP:
                        self.refuse(name, "a symbolic link that leads in a circle; remove it")
                    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
                        self.refuse(name, "a broken symbolic link; restore what it points to or remove it")
                    else:
                        self.unreadable(name, error)
                    continue
                key = (status.st_dev, status.st_ino)
                if stat.S_ISDIR(status.st_mode):
                    if os.path.realpath(os.path.dirname(path)).startswith(os.path.join(real, "")) or (
                        os.path.realpath(os.path.dirname(path)) == real
                    ):
                        self.refuse(name, "a symbolic link to a folder that it lies in (a loop); remove it")
                    else:
                        yield from self.folder(Path(path), name)
                elif key not in self.targets and _identity(os.path.dirname(real)) not in self.folders:
                    self.targets.add(key)
                    yield from self.regular(path, name, status)

    def regular(self, path: str, name: str, status: os.stat_result) -> Iterator[Found]:
        if (status.st_dev, status.st_ino) in self.skipped:
            return
        if kind := _SPECIAL.get(stat.S_IFMT(status.st_mode)):
            self.refuse(name, f"{kind}, not a file; remove it")
        elif not os.access(path, os.R_OK):
            if os.path.lexists(path):
                self.refuse(name, f"cannot read: permission denied; {_PERMISSIONS}", passing=True)
            else:
                self.refuse(name, _VANISHED, passing=True)
        else:
            yield Found(Path(self.alias(path)), shown(name))

    def alias(self, path: str) -> str:
        """A path that every library can open: a link in the scratch folder if the name has undecodable bytes."""
        try:
            path.encode()
            return path
        except UnicodeEncodeError:
            self.count += 1
            suffix = "".join(c for c in os.path.basename(path) if c.isascii())
            alias = self.place() / f"{self.count}" / (suffix or "file")
            try:
                alias.parent.mkdir()
                alias.symlink_to(os.path.abspath(path))
            except OSError as error:
                raise write_error(alias, error) from error
            return str(alias)

    def place(self) -> Path:
        """A folder that belongs to this walk alone."""
        if self.own is None:
            try:
                self.own = Path(tempfile.mkdtemp(dir=self.scratch))
            except OSError as error:
                raise write_error(self.scratch, error) from error
        return self.own

    def unreadable(self, name: str, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            self.refuse(name, _VANISHED, passing=True)
        elif error.errno in (errno.EACCES, errno.EPERM):
            self.refuse(name, f"cannot read: permission denied; {_PERMISSIONS}", passing=True)
        else:
            self.refuse(name, f"cannot read: {error.strerror}; check the disk and its name", passing=True)


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def scratch_folder(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder below ``parent`` that only its owner may read; it is removed when the block ends.

    A run that was killed leaves its folder behind, and the next call with the same ``parent`` removes it. A folder in
    use is recognised by its lock, so that runs side by side do not remove each other's.

    Raises :class:`~deepatlas.errors.DataError` if ``parent`` cannot be created or written.
    """
    parent = Path(parent)
    handles: list[int] = []
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Until the new folder is locked, no other process may take it for one that was left behind.
        with _locked(parent):
            _clean(parent)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            if fcntl is not None:
                handles.append(os.open(folder, os.O_RDONLY))
                # Some file systems have no locks.
                with suppress(OSError):
                    fcntl.flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise write_error(parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for handle in handles:
            os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clean(parent: Path) -> None:
    """Remove scratch folders that no process holds."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # It is in use, or the file system has no locks.
            continue
        finally:
            os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)
