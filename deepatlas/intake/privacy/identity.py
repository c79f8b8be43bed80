"""Pseudonyms, and the folder beside a dataset that alone can undo them.

An exam's id is the HMAC-SHA256 of its key (a StudyInstanceUID or a path) under a secret salt, so that the same exam
keeps its id from run to run and nobody without the salt can try out the UIDs of a hospital. The salt, and the tables
that say which exam is which, lie in ``DST.private`` beside the dataset, for their owner's eyes.
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

from deepatlas.errors import DataError
from deepatlas.files import atomic_path, write_error

_CLAIM_SECONDS = 10.0  # a claim is held for one rename
ID_DIGITS = 16  # 64 bits: two of 51,167 exams meet by chance once in 10^10 datasets
# Endings that say what a file is and not whose: anything else after a dot may be part of a name.
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
        """Make the private folder (mode 0700) and its salt (0600), or read them.

        Several processes may do so at once: one salt wins. Raises :class:`~deepatlas.errors.DataError` where they
        cannot be written, where the salt is not what was written, and (``create=False``) where there is none.
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
        """16 hexadecimal digits for a value; other kinds of the same value get others."""
        message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:ID_DIGITS]

    def exam_id(self, key: str) -> str:
        return self.pseudonym("exam", key)

    def alias(self, name: str) -> str:
        """What stands in the dataset for a file: its pseudonym and its ending, if that is one of image files."""
        return "file-" + self.pseudonym("file", name) + known_ending(name)

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
        """A table in the private folder, readable by its owner alone, whole or not at all."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(header)
        table.writerows(rows)
        path = self.folder / name
        with atomic_path(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
                handle.write(text.getvalue())
        return path


def known_ending(name: str) -> str:
    """The ending of a file name if it is a common one, else the empty string."""
    lower = name.lower()
    return max((e for e in _ENDINGS if lower.endswith(e)), key=len, default="")


def readable_id(name: str) -> str:
    """A name as an id that any file system takes (``--keep-ids``); may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:80]


# A word of a path or header that short or that common is no identifier, and messages need it.
_ORDINARY = frozenset(
    "ct seg dicom data image images labels label mask exam series study scan file train test".split()
)
_UID = re.compile(r"\d+(\.\d+){3,}")
_PATH = re.compile(r"(?<![\w.])[~.]?(/[^\s:;,]+)+/?|[A-Za-z]:\\[^\s:;,]+")
_QUOTED = re.compile(r"(?<!\w)(['\"]).*?\1(?!\w)")
_BRACKETS = re.compile(r"\s*\(([^()]*)\)")
_LONG = re.compile(r"\d{6,}|(?<!\d)\d{1,4}[-/]\d{1,2}[-/]\d{1,4}(?!\d)")
# What may stand in brackets: numbers and the words that our own messages use with them. The rest may quote a file.
_MEASURES = re.compile(
    r"(\s|,|;|:|[-+]?\d+(\.\d+)?(e[-+]?\d+)?|[x×%°²³]|mm|cm|ml|hu|kv|degrees?|slices?|voxels?|frames?|files?|apart|up|to|of"
    r"|and|or|in|with|the|a|corners?|cosine|x|y|z|axis|axes|air|no|region|above|below|sheared|geometry|as|after|gantry|tilt"
    r"|axial|coronal|sagittal|oblique|part|number|without|after|slice|about|at|most|least|is|are|series|bits?|largest|smallest|median)*",
    re.IGNORECASE,
)  # fmt: skip


def public_text(text: str, secrets_: Iterable[str] = ()) -> str:
    """One line of a message as it may stand in a dataset: what could name somebody is cut out.

    ``secrets_`` are names and paths that must go wherever they stand (whole, and word by word). Quotations, paths,
    UIDs, dates, long numbers and bracketed remarks of libraries go in any case.
    """
    text = " ".join(str(text).split())
    whole = sorted({s for s in secrets_ if len(s) >= 2}, key=len, reverse=True)
    for secret in whole:
        if secret.lower() not in _ORDINARY:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)" if len(secret) < 5 else re.escape(secret), "…", text,
                          flags=re.IGNORECASE)  # fmt: skip
    words = {w for s in whole for w in re.split(r"[\W_]+", s) if len(w) >= 3 and w.lower() not in _ORDINARY}
    known = _vocabulary()
    for word in sorted(words, key=len, reverse=True):
        if word.lower() not in known:
            text = re.sub(re.escape(word), "…", text, flags=re.IGNORECASE)
    text = _QUOTED.sub("…", text)
    text = _PATH.sub("…", text)
    text = _UID.sub("…", text)
    text = _LONG.sub("…", text)
    text = _BRACKETS.sub(lambda m: m.group(0) if _MEASURES.fullmatch(m.group(1)) else "", text)
    text = re.sub(r"…(\s*[:,;/._-]?\s*…)+", "…", text)
    return re.sub(r"^…\s*:\s*", "", text).strip() or "cannot be used"


def _vocabulary() -> frozenset[str]:
    """English words of our messages that a folder may be called by ("body", "head", "slices")."""
    return frozenset(
        "the and not for with file files slice slices voxel voxels axis axes image volume body head neck chest abdomen "
        "pelvis lung lungs liver spine contrast axial coronal sagittal spacing series study exam patient damaged "
        "truncated empty missing read copy export again check holds only one two three from its has are was "
        "archive archives scratch disk".split()
    )


def _close_to_others(folder: Path) -> None:
    """Mode 0700. Where a disk knows no permissions (FAT), how it is mounted decides who reads it."""
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
    """Write a small file (mode 0600) unless it is there; whole, and never over another process's."""
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
        except OSError:  # a disk without hard links; if it is another trouble, it shows again
            _rename_once(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_once(temporary: Path, path: Path) -> None:
    """Name ``temporary`` ``path`` unless that is there. A rename replaces, so one process at a time may do it."""
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
            if not path.exists():  # else another process was done before this one's claim
                os.rename(temporary, path)
        finally:
            claim.unlink()
