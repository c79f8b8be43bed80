"""The model of the levels above a region: what its crops are cut by, and what its training starts from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepatlas.errors import DeepAtlasError
from deepatlas.model.engine import Engine
from deepatlas.model.regions import Region


@dataclass(frozen=True)
class Parent:
    """A model of whole exams, with the regions that lie above another one and no others.

    Attributes:
        folder: the run folder, the model file or the name of a shipped model.
        fingerprint: that of the model of whole exams.
        above: the names of the regions, from the highest one down.
        fingerprints: those of their models.
        refine: the refinement steps with which they answer.
        intensity: what the values of exams are.
    """

    folder: str
    fingerprint: str
    above: tuple[str, ...]
    fingerprints: tuple[str, ...]
    refine: int
    intensity: str

    @classmethod
    def of(cls, folder: str | os.PathLike[str], path: Sequence[Region]) -> Parent:
        """The model in ``folder`` as the parent of the last region of ``path``, which the others lie above.

        Raises:
            DeepAtlasError: there is no such model, it has no coordinates, it is that of a region itself, or a region
                above has no model yet or another box.
        """
        model = Engine.load(folder, "cpu")
        *above, region = path
        if model.structures:
            raise DeepAtlasError(
                f"--parent {folder}: was trained on labels and has no coordinates; give the model that it came from"
            )
        if "region" in model.card:
            raise DeepAtlasError(
                f"--parent {folder}: is the model of region {model.region.name}; give the model of whole exams, whose "
                f"regions/{model.region.name} it is"
            )
        trained = {network.region.name: network for network in model.regions}
        for other in above:
            if other.name not in trained:
                raise DeepAtlasError(
                    f"{folder}: region {other.name}, which {region.name} lies in, has no model yet; train it first "
                    f"(--region {other.name})"
                )
            if trained[other.name].region.to_dict() != other.to_dict():
                raise DeepAtlasError(
                    f"{folder}: region {other.name} was trained with another box than the tree gives it; give the tree "
                    "of that time, or train it again"
                )
        return cls(
            os.fspath(folder),
            model.fingerprint,
            tuple(other.name for other in above),
            tuple(trained[other.name].fingerprint for other in above),
            model.refine,
            model.intensity,
        )

    def load(self, device: str) -> Engine:
        """The model of whole exams, with the regions above.

        Raises:
            DeepAtlasError: it, or one of them, is not the one that it was.
        """
        model = Engine.load(self.folder, device, refine=self.refine)
        model.regions = [network for network in model.regions if network.region.name in self.above]
        found = (model.fingerprint, *(network.fingerprint for network in model.regions))
        if found != (self.fingerprint, *self.fingerprints):
            raise DeepAtlasError(
                f"{self.folder}: is another model ({', '.join(found)}) than the one that the region is of "
                f"({', '.join((self.fingerprint, *self.fingerprints))}); restore it, or train the region again"
            )
        return model

    def to_dict(self) -> dict[str, Any]:
        """What crops depend on, as JSON values."""
        above = dict(zip(self.above, self.fingerprints, strict=True))
        return {"parent": self.fingerprint, "above": above, "refine": self.refine}
