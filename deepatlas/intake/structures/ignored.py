"""Why a structure of a source is not in the label image."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Ignored:
    """The reason why a structure is left out; ``str(ignored)`` is its text."""

    why: Why
    text: str

    def __str__(self) -> str:
        return self.text


class EmptyStructure(DataError):
    """A structure that the source lists without drawing it."""
