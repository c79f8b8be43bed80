"""Which members of an archive may be written to the disk, where, and how many bytes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepatlas.files import write_error
from deepatlas.io.dicom.found import Found, Refusal

TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
ARCHIVES = (".zip", *TARS)
# Archives that cannot be opened here.
UNREAD = (".7z", ".rar", ".tar.zst", ".lha", ".iso")
UNPACK = "unpack it yourself and give the folder"
CHUNK = 1 << 20
# Bytes that are written between two checks of the free space.
_LOOK = 64 << 20
# Folders and files that operating systems leave behind. None of them is an image.
_JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold. A CT compresses two- to fourfold, an empty label image a thousandfold.

    Archives that unpack to more than ``floor`` bytes and to more than ``ratio`` times their size are refused, and so
    are those that would leave less than ``reserve`` bytes free on the scratch disk.
    """

    members: int = 200_000
    ratio: int = 200
    floor: int = 4 << 30
    reserve: int = 1 << 30


LIMITS = Limits()


class Refused(Exception):
    """The archive as a whole is refused; the text is the reason. ``passing``: another run may succeed."""

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def archive_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of an archive, also of one that cannot be read (``.7z``); empty for other files (``.nii.gz``)."""
    name = os.fspath(path).lower()
    return max((s for s in (*ARCHIVES, *UNREAD) if name.endswith(s)), key=len, default="")


def shown(name: str) -> str:
    """A file name on one line, with control characters, undecodable bytes and backslashes escaped uniquely."""
    return "".join(c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in name)


def is_junk(name: str) -> bool:
    """Whether a file is hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in _JUNK


class Extraction:
    """An archive that is being unpacked: what has been found and refused, and how many bytes may still be written."""

    def __init__(self, archive: Found, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.found: list[Found] = []
        self.refused: list[Refusal] = []
        self.members = 0
        try:
            size = archive.path.stat().st_size
        except OSError:
            # The archive has gone. Opening it will report that.
            size = 0
        self.allowance = max(limits.floor, limits.ratio * size)
        self.written = 0
        # The free space is checked before the first byte.
        self._checked = -_LOOK

    def name(self, member: str) -> str:
        return f"{self.archive.name}!{shown(member)}"

    def refuse(self, member: str, reason: str) -> None:
        self.refused.append(Refusal(self.name(member), reason))

    def count(self) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise Refused(f"holds more than {self.limits.members} members; {UNPACK}")

    def expect(self, total: int) -> None:
        """Refuse the archive if ``total`` bytes are too many for its limits or for the disk."""
        if total > self.allowance:
            raise Refused(
                f"unpacks to more than {_size(self.allowance)}, which no images compress to "
                f"(an archive bomb?); if it is honest, {UNPACK}"
            )
        try:
            _private_folders(self.folder)
            free = shutil.disk_usage(self.folder).free - self.limits.reserve
        except OSError as error:
            raise write_error(self.folder, error) from error
        if total - self.written > free:
            raise Refused(
                f"unpacks to {_size(total)}, and the scratch disk has {_size(max(0, free))} to give; "
                "free space there or unpack it yourself",
                passing=True,
            )

    def take(self, member: str) -> Path | None:
        """Where a member may be written, or None if it is refused or passed over."""
        self.count()
        parts = [part for part in member.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            self.refuse(member, f"has no name; {UNPACK}")
        elif member[0] in "/\\" or re.match(r"[A-Za-z]:", member) or ".." in parts or "\0" in member:
            self.refuse(member, f"its path leads out of the archive; remove it or {UNPACK}")
        elif any(is_junk(part) for part in parts):
            pass
        elif archive_suffix(parts[-1]):
            self.refuse(member, f"an archive inside an archive; {UNPACK}")
        else:
            return self.folder.joinpath(*(shown(part) for part in parts))
        return None

    def write(self, member: str, target: Path, stream: BinaryIO, size: int) -> None:
        """Copy a member of ``size`` bytes to its place. Errors that damage of the archive causes are not caught."""
        try:
            _private_folders(target.parent)
            out = open(target, "xb", opener=_private)
        except (FileExistsError, NotADirectoryError):
            return self._ambiguous(member, target)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return self.refuse(member, f"its name is too long; {UNPACK}")
            raise self._unwritable(error) from error
        try:
            with out:
                done = 0
                while chunk := stream.read(CHUNK):
                    done += len(chunk)
                    self._spend(len(chunk))
                    try:
                        out.write(chunk)
                        out.flush()
                    except OSError as error:
                        raise self._unwritable(error) from error
            if done != size:
                raise EOFError(f"{done} of {size} bytes of a member are there")
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise
        self.found.append(Found(target, self.name(member)))

    def _ambiguous(self, member: str, target: Path) -> None:
        """Refuse all members of one name, since nobody can tell which is meant; the file stays to mark the name."""
        self.found = [found for found in self.found if found.path != target]
        self.refuse(member, f"several members of the archive have this name; {UNPACK}")

    def _unwritable(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return Refused("the scratch disk is full; free space there or unpack it yourself", passing=True)
        return write_error(self.folder, error)

    def _spend(self, count: int) -> None:
        self.written += count
        if self.written > self.allowance or self.written - self._checked > _LOOK:
            self._checked = self.written
            self.expect(self.written)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _private_folders(path: Path) -> None:
    """Make a folder and those above it, which only their owner may read."""
    if not path.is_dir():
        _private_folders(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
