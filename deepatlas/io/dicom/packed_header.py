"""Headers as bytes, for a database that keeps millions of them: fewer than 500 bytes for a CT slice.

A plan, which is compressed as a whole, needs only some 70 bytes for each slice, because slices share most values.
"""

from __future__ import annotations

import pickle
import sys
import zlib
from dataclasses import fields
from typing import Any

import numpy as np

from deepatlas.io.dicom.header import Header

_FIELDS = tuple(field.name for field in fields(Header))
_ARRAYS = ("positions", "rescale")


def pack(header: Header) -> bytes:
    """The header as compressed bytes. They are trusted when they are read again: keep them in a private folder."""
    values = [getattr(header, name) for name in _FIELDS]
    for index, name in enumerate(_FIELDS):
        if name in _ARRAYS and values[index] is not None:
            values[index] = values[index].tolist()
    return zlib.compress(pickle.dumps(values, pickle.HIGHEST_PROTOCOL))


def unpack(data: bytes) -> Header:
    """The header that :func:`pack` was given. Texts are interned, since the slices of a series share most of them."""
    values = dict(zip(_FIELDS, map(_interned, pickle.loads(zlib.decompress(data))), strict=True))
    for name in _ARRAYS:
        if values[name] is not None:
            values[name] = np.array(values[name])
    return Header(**values)


def _interned(value: Any) -> Any:
    if type(value) is str:
        return sys.intern(value)
    if type(value) is tuple:
        return tuple(map(_interned, value))
    return value
