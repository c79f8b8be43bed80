"""Why a structure of a source is not in the label image."""

from __future__ import annotations

from enum import Enum, auto

from deepatlas.errors import DataError


class Why(Enum):
    """The kinds of reasons; some of them concern nobody, and a report leaves them out."""

    # The name map does not mention the structure.
    NOT_IN_MAP = auto()
    # The label table has no id for the structure.
    NOT_IN_TABLE = auto()
    # The source lists the structure without drawing it.
    EMPTY = auto()
    # Anything else, for example contours that enclose nothing.
    UNUSABLE = auto()


class Ignored(str):
    """The reason why a structure is left out, as a text that carries its kind, ``why``."""

    why: Why

    def __new__(cls, why: Why, text: str) -> Ignored:
        self = super().__new__(cls, text)
        self.why = why
        return self

    def __getnewargs__(self) -> tuple[Why, str]:  # type: ignore[override]
        return self.why, str(self)


class EmptyStructure(DataError):
    """A structure that the source lists without drawing it."""
