"""What made structures, as files for other programs state it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """What made the structures: the name and version of the program, and the fingerprint of the model if known."""

    name: str
    version: str
    model: str = ""
