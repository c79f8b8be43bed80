"""Arrays for the page: one compressed body with a JSON header, which ``static/net.js`` takes apart."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The most voxels along an axis of what is sent.
MOST = 256
# Where an array begins, in bytes, so that the page can look at it as numbers of any size without a copy.
_ALIGNED = 8


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> bytes:
    """The body: the length of the header (uint32), the header, and the arrays.

    All numbers are little-endian. The header is ``header`` with one more entry ``arrays``: by its name, the dtype
    (``int16``, ``float16`` …), the shape and the first byte after the header of each. Sent with
    ``Content-Encoding: gzip``.
    """
    parts, about, at = [], {}, 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        data = little.tobytes()
        about[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "at": at}
        fill = -len(data) % _ALIGNED
        parts += [data, bytes(fill)]
        at += len(data) + fill
    text = json.dumps({**header, "arrays": about}, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % _ALIGNED)
    return gzip.compress(b"".join([len(text).to_bytes(4, "little"), text, *parts]), compresslevel=1)
