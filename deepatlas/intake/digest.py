"""A short fingerprint of values."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*parts: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of ``parts`` in JSON; equal values have equal digests."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:32]
