"""Pseudonyms, and the private folder beside a dataset without which they cannot be undone.

The id of an exam is the HMAC-SHA256 of its key (a StudyInstanceUID or a path) under a secret salt. An exam keeps its id
from run to run, and nobody without the salt can find out whose exam it is by trying the UIDs of a hospital. The salt,
and the tables that tell which exam is which, are in ``DST.private`` beside the dataset, readable by its owner only.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepatlas.cells import cells, text_of
from deepatlas.errors import DataError
from deepatlas.files import atomic_path, write_error

# How long to wait for the claim of another process, which holds it for one rename.
_CLAIM_SECONDS = 10.0
# Hexadecimal digits of an id. With 64 bits, two of 51,167 exams share an id in one of 10^10 datasets.
ID_DIGITS = 16
# Endings that tell the format of a file. Any other text after a dot may be part of a person's name.
_ENDINGS = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom", ".ima", ".json", ".zip", ".tar", ".tar.gz",
    ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".7z", ".rar", ".h5", ".csv", ".txt", ".pdf", ".xml", ".jpg", ".png", ".raw",
)  # fmt: skip


def private_folder(dst: Path) -> Path:
    """``DST.private``, beside ``DST``."""
    dst = Path(os.path.realpath(dst))
    return dst.with_name(dst.name + ".private")


class Identity:
    """The pseudonyms of one dataset. ``folder`` is its private folder."""

    def __init__(self, folder: Path, salt: bytes) -> None:
        self.folder, self._salt = folder, salt

    @classmethod
    def open(cls, dst: Path, *, create: bool = True) -> Identity:
        """Open the private folder, which is made (mode 0700) together with its salt (mode 0600) if it is missing.

        Several processes may do this at the same time and get the same salt. Raises
        :class:`~deepatlas.errors.DataError` if the folder or the salt cannot be written, if the salt is damaged, and,
        with ``create=False``, if it is missing.
        """
        folder = private_folder(dst)
        path = folder / "salt"
        try:
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _close_to_others(folder)
                _create_once(path, secrets.token_hex(32))
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: its salt is gone, without which the exams' ids cannot be made again; put the folder back, "
                "or choose another DST"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError):
                raise write_error(folder, error) from error
            text = ""
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise DataError(f"{path}: damaged (not 64 hexadecimal digits); put back what was there")
        return cls(folder, bytes.fromhex(text))

    def pseudonym(self, kind: str, value: str) -> str:
        """16 hexadecimal digits for a value, which differ between the kinds ("exam", "file" …) of the same value."""
        message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:ID_DIGITS]

    def exam_id(self, key: str) -> str:
        return self.pseudonym("exam", key)

    def alias(self, name: str) -> str:
        """The name of a file in the dataset: its pseudonym, followed by its ending if that is a common one."""
        return "file-" + self.pseudonym("file", name) + known_ending(name)

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
        """Write a table into the private folder (mode 0600), complete or not at all."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(header)
        table.writerows(map(cells, rows))
        path = self.folder / name
        with atomic_path(path, private=True) as temporary:
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
                handle.write(text.getvalue())
        return path

    def read_csv(self, name: str) -> list[list[str]]:
        """The rows of a table of the private folder without its header; empty if there is none."""
        try:
            with open(self.folder / name, encoding="utf-8", errors="surrogateescape", newline="") as handle:
                return [[text_of(value) for value in row] for row in csv.reader(handle) if row][1:]
        except (OSError, csv.Error):
            return []


def known_ending(name: str) -> str:
    """The ending of a file name if it is a common one, else the empty string."""
    lower = name.lower()
    return max((e for e in _ENDINGS if lower.endswith(e)), key=len, default="")


def readable_id(name: str) -> str:
    """A name turned into an id that every file system accepts (``--keep-ids``); it may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80]


def _close_to_others(folder: Path) -> None:
    """Set mode 0700. On a disk without permissions (FAT), the mount options decide who may read the folder."""
    if not stat.S_IMODE(os.stat(folder).st_mode) & 0o077:
        return
    try:
        os.chmod(folder, 0o700)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be closed to other users ({error.strerror}), and it tells which exam is whose; mount "
            "its disk with umask=077, or choose a DST on another one"
        ) from error


def _create_once(path: Path, text: str) -> None:
    """Write a small file (mode 0600) unless it exists: completely, and never over the one of another process."""
    if path.exists():
        return
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            # The disk has no hard links. If it is another trouble, the rename fails as well.
            _rename_once(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_once(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path`` unless that exists.

    A rename would replace the file of another process, so a claim lets one process at a time do it.
    """
    claim = path.with_name(f".{path.name}.claim")
    until = time.monotonic() + _CLAIM_SECONDS
    while not path.exists():
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if time.monotonic() > until:
                raise DataError(f"{claim}: left by a run that was killed; delete it and run again") from None
            time.sleep(0.01)
            continue
        try:
            # Another process may have finished before this one got its claim.
            if not path.exists():
                os.rename(temporary, path)
        finally:
            claim.unlink()
