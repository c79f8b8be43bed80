"""Unpack archives of unknown origin safely.

A member is written only below the given folder, only as a regular file, only within the limits, and only under a
checked name. A fault of one member refuses that member. A fault of the archive (it is damaged, truncated, or larger
than images can be) refuses the archive, and nothing of it stays on the disk.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepatlas.errors import DataError, PassingError
from deepatlas.intake.find.extraction import (
    CHUNK,
    LIMITS,
    UNPACK,
    UNREAD,
    Extraction,
    Limits,
    Refused,
    archive_suffix,
)
from deepatlas.io.dicom.found import Found, Refusal

_STREAMS: dict[str, Callable[..., BinaryIO]] = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
    ".tar.bz2": bz2.open,
}
_AGAIN = "copy or export it again"
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    struct.error,
    # A name that is not UTF-8, an impossible date or offset.
    ValueError,
    OverflowError,
    IndexError,
)


@dataclass(frozen=True)
class Archive:
    """An archive below the source, and the folder into which it is to be unpacked."""

    found: Found
    folder: Path


class Unopened(PassingError):
    """An archive that was unpacked before and cannot be unpacked now."""


@contextmanager
def opened(archives: Iterable[Archive]) -> Iterator[None]:
    """Keep archives unpacked in their folders while the block runs; :class:`Unopened` if one cannot be unpacked."""
    folders: list[Path] = []
    try:
        for archive in archives:
            folders.append(archive.folder)
            # A worker that died may have left a part of it.
            shutil.rmtree(archive.folder, ignore_errors=True)
            refused: list[Refusal] = []
            if not extract(archive.found, archive.folder, refused):
                reason = refused[-1].reason if refused else "it is empty now; put it back"
                raise Unopened(f"its archive cannot be unpacked: {reason}")
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def extract(archive: Found, folder: Path, refused: list[Refusal], limits: Limits = LIMITS) -> list[Found]:
    """Unpack an archive into ``folder``, which is created, and list its regular files, sorted by name.

    Args:
        archive: a file whose name ends in one of :data:`~deepatlas.intake.find.extraction.ARCHIVES`.
        folder: must not exist or be empty; it is removed again if the archive is refused.
        refused: refusals are appended, of single members or of the whole archive.
        limits: protect against archives that are made to fill a disk.

    Raises :class:`~deepatlas.errors.DataError` if ``folder`` cannot be written for another reason than a full disk.
    """
    suffix = archive_suffix(archive.path)
    job = Extraction(archive, folder, limits)
    try:
        if suffix in UNREAD:
            raise Refused(f"an archive of a kind that is not read ({suffix}); {UNPACK}")
        try:
            if suffix == ".zip":
                _unzip(job)
            else:
                _untar(job, _STREAMS[suffix])
        except DataError:
            # It is a ValueError as well.
            raise
        except _DAMAGE as error:
            raise Refused(f"damaged or truncated archive ({_brief(error)}); {_AGAIN}") from error
        except MemoryError as error:
            raise Refused(f"an archive whose headers do not fit into memory; {UNPACK}") from error
        except OSError as error:
            raise Refused(
                f"cannot read: {error.strerror or 'input error'}; check the file and disk", passing=True
            ) from error
    except Refused as error:
        shutil.rmtree(folder, ignore_errors=True)
        refused.append(Refusal(archive.name, str(error), passing=error.passing))
        return []
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    refused.extend(job.refused)
    return sorted(job.found, key=lambda found: found.name)


# -- zip --------------------------------------------------------------------------------------------


def _unzip(job: Extraction) -> None:
    entries = _directory(job)
    with zipfile.ZipFile(job.archive.path) as file:
        members = file.infolist()
        if entries is not None and len(members) % 65536 != entries % 65536:
            raise zipfile.BadZipFile(f"{len(members)} of {entries} members are listed")
        if len(members) > job.limits.members:
            raise Refused(f"holds more than {job.limits.members} members; {UNPACK}")
        _refuse_overlap(members)
        job.expect(sum(member.file_size for member in members))
        by_name: dict[str, list[zipfile.ZipInfo]] = {}
        for member in members:
            if member.is_dir():
                job.count()
            else:
                by_name.setdefault(member.filename, []).append(member)
        for name in sorted(by_name):
            same = by_name[name]
            if len({(m.CRC, m.file_size) for m in same}) > 1:
                job.refuse(name, f"{len(same)} different members have this name; {UNPACK}")
            else:
                _unzip_member(job, file, same[-1])


def _unzip_member(job: Extraction, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    if (target := job.take(name)) is None:
        return
    if kind not in (0, stat.S_IFREG):
        return job.refuse(name, f"a link or device inside an archive; {UNPACK}")
    if member.flag_bits & 0x41:
        return job.refuse(name, "encrypted; unpack the archive with its password and give the folder")
    try:
        with file.open(member) as stream:
            job.write(name, target, stream, member.file_size)
    except NotImplementedError:
        job.refuse(name, f"compressed by a method that is not read ({member.compress_type}); {UNPACK}")
    except DataError:
        raise
    except _DAMAGE as error:
        job.refuse(name, f"damaged in the archive ({_brief(error)}); {_AGAIN}")


def _directory(job: Extraction) -> int | None:
    """The number of members that a zip declares; refuses a directory that would not fit into memory.

    :mod:`zipfile` reads the whole directory at once, and does not compare its length with the declared number.
    """
    with open(job.archive.path, "rb") as file:
        if file.seek(0, os.SEEK_END) < 22:
            raise zipfile.BadZipFile("too short for a zip archive")
        file.seek(-min(file.tell(), 22 + 65535 + 20), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile("no directory at its end")
    entries, size = struct.unpack("<HI", tail[at + 10 : at + 16])
    if entries == 0xFFFF or size == 0xFFFFFFFF:
        # zip64: the members that are found are counted.
        return None
    if size > job.limits.members * 512:
        raise Refused(f"holds more than {job.limits.members} members; {UNPACK}")
    return entries


def _refuse_overlap(members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, by which a small archive can unpack to a huge one."""
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            raise Refused(f"its members overlap, as in an archive bomb; {UNPACK}")
        end = member.header_offset + 30 + len(member.orig_filename) + member.compress_size


# -- tar --------------------------------------------------------------------------------------------


def _untar(job: Extraction, opener: Callable[..., BinaryIO]) -> None:
    with opener(job.archive.path, "rb") as raw:
        tape = _Tape(raw, job)
        with tarfile.open(fileobj=tape, mode="r|", bufsize=1 << 16) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                tape.allow(tar.offset)
                _untar_member(job, tar, member)
                # Otherwise tarfile keeps every header in memory.
                tar.members = []
            end = tar.offset
        # The checksum of a compressed stream is verified at its end.
        while tape.read(CHUNK):
            tape.allow(tape.position)
    # tarfile takes a damaged header for the end of the archive. After the true end there are only zeros.
    if tape.last > end or tape.position < end + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without its end mark, or a header is damaged")


def _untar_member(job: Extraction, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if member.isdir():
        return job.count()
    if (target := job.take(member.name)) is None:
        return
    if not member.isreg() or member.issparse():
        return job.refuse(member.name, f"a link, device or sparse file inside an archive; {UNPACK}")
    stream = tar.extractfile(member)
    # It is None only for what is not a regular file.
    assert stream is not None
    job.write(member.name, target, stream, member.size)


class _Tape:
    """A decompressed tar for tarfile to read, which counts the bytes and allows no more than the next headers."""

    # Bytes that the headers of one member may have, since tarfile keeps them in memory.
    HEADERS = 4 << 20

    def __init__(self, raw: BinaryIO, job: Extraction) -> None:
        self._raw, self._job = raw, job
        self.position = 0
        # The end of the last byte that is not zero.
        self.last = 0
        self.allow(0)

    def allow(self, offset: int) -> None:
        """Allow reading up to the end of the headers at ``offset``."""
        self._until = offset + self.HEADERS

    def read(self, size: int) -> bytes:
        if self.position + size > self._until:
            raise tarfile.ReadError("a header of impossible size")
        if self.position > self._job.allowance:
            self._job.expect(self.position)
        data = self._raw.read(size)
        if stripped := data.rstrip(b"\0"):
            self.last = self.position + len(stripped)
        self.position += len(data)
        return data


def _brief(error: Exception) -> str:
    """The message of a library without the names of members that it may quote."""
    text = re.sub(r"(for file|name) .*", "", str(error)).strip(" ,:'\"")
    return re.sub(r"[^ -~]", "?", text)[:80] or type(error).__name__
