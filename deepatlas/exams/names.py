"""Names of structures, and when two of them are the same."""

from __future__ import annotations

import unicodedata


def compact(name: str) -> str:
    """A name without case, spaces and punctuation. Two names that agree in this form are the same name."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())
