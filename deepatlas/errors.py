"""The errors that a user is meant to read: one line, naming the thing and the cure."""

from __future__ import annotations


class DeepAtlasError(ValueError):
    """Something the user can put right. ``str(error)`` is a single line: what, where, cure."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class DataError(DeepAtlasError):
    """An exam, label file, data directory, store or output path that cannot be used."""


class DataWarning(UserWarning):
    """An exam that can be used but looks odd (for example, not in Hounsfield units)."""
