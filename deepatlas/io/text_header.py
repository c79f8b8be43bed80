"""The text headers of NRRD and MetaImage, read strictly: what they have in common."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.integrity import AGAIN, Checked

# A header with more lines than this is damaged.
MAX_LINES = 1024


@dataclass(frozen=True)
class TextHeader:
    """The fields of a header; ``kind`` is what messages call the format."""

    path: Path
    kind: str
    fields: dict[str, str] = field(default_factory=dict)

    def damaged(self, problem: str) -> DataError:
        """The error for a header with a field that is missing or impossible."""
        return DataError(f"{self.path}: damaged {self.kind} header ({problem}); {AGAIN}")

    def integers(self, key: str, count: int, default: str = "") -> list[int]:
        """A field that holds ``count`` positive integers; :class:`DataError` for anything else."""
        text = self.fields.get(key, default)
        words = text.split()
        if len(words) != count or not all(re.fullmatch(r"0*[1-9][0-9]{0,11}", w) for w in words):
            raise self.damaged(f"{key} {printable(text)}")
        return [int(word) for word in words]

    def floats(self, key: str, words: list[str], count: int) -> NDArray[np.float64]:
        """``words`` of a field as ``count`` finite numbers; :class:`DataError` for anything else."""
        try:
            # float() also accepts 1_0 and the digits of other scripts, which no program writes on purpose.
            numbers = np.array([float(w) if re.fullmatch(r"[\s0-9.eE+-]+", w) else np.nan for w in words])
        except ValueError:
            numbers = np.array([np.nan])
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise self.damaged(f"{key} {printable(' '.join(words))}")
        return numbers

    def number(self, key: str, default: str) -> int:
        """A field that holds one number, without its fraction."""
        return int(self.floats(key, [self.fields.get(key, default)], 1)[0])

    def voxel_file(self, name: str, checked: Checked) -> Path:
        """The file of voxels that the header names, noted in ``checked``.

        Raises :class:`DataError` if it does not exist.
        """
        try:
            # The name as the operating system has it, whatever its encoding.
            checked.beside = os.fsdecode(name.encode("ascii", "surrogateescape"))
            voxels = self.path.parent / checked.beside
            if voxels.is_file():
                return voxels
        except (OSError, ValueError):
            # The name is not a valid file name.
            pass
        raise DataError(f"{self.path}: its voxels are in another file, which is missing; copy both files")


def read_line(handle: BinaryIO) -> str:
    """The next line.

    Bytes beyond ASCII become lone surrogates, which are neither parts of numbers nor white space that ``strip``
    removes, and from which the name of a file can be restored.
    """
    return handle.readline(1 << 16).decode("ascii", "surrogateescape")


def printable(text: str) -> str:
    """At most 60 characters of a field for a message, without control characters."""
    return re.sub(r"[^ -~]", "?", text.strip())[:60]


def bytes_left(handle: BinaryIO) -> int:
    """Number of bytes from the current position to the end of the file; the position does not change."""
    here = handle.tell()
    length = handle.seek(0, os.SEEK_END) - here
    handle.seek(here)
    return max(0, length)
