"""What made structures, as files for other programs state it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """What made the structures.

    Attributes:
        name: the name of the program.
        version: its version.
        model: the fingerprint of the model, if it is known.
        caution: why the structures must not be believed, in at most 40 characters; empty where nothing speaks against
            them.
    """

    name: str
    version: str
    model: str = ""
    caution: str = ""

    @property
    def title(self) -> str:
        """What viewers list the structures as; at most 64 characters, as DICOM has it."""
        return f"DeepATLAS structures; {self.caution}" if self.caution else "DeepATLAS structures"
