"""What a worker process does with one exam of an index: read it and describe it."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.checksums import image_files
from deepatlas.exams.kind import Kind
from deepatlas.exams.read import read_volume
from deepatlas.index.appearance import appearance, packed
from deepatlas.index.facts import facts
from deepatlas.index.file import Entry
from deepatlas.index.in_view import in_view
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine


@dataclass(frozen=True)
class Tools:
    """The model and the template that every process loads once.

    ``names`` are those of its structures and boxes, and ``digest`` is that of the template, so that a process does not
    keep one that was replaced under the same name. ``sides`` is :func:`~deepatlas.index.flip.shows_sides` of the model.
    """

    model: str
    template: str
    names: tuple[str, ...]
    digest: str
    device: str | None = None
    refine: int = 0
    trust: bool = False
    sides: bool = True


@dataclass(frozen=True)
class IndexJob:
    """One exam to describe."""

    id: str
    path: Path
    kind: Kind
    labelled: bool
    key: str
    tools: Tools


@dataclass(frozen=True)
class Refused:
    """Takes the place of an entry where an exam cannot be used."""

    id: str
    reason: str


@lru_cache(maxsize=1)
def loaded(tools: Tools) -> tuple[Engine, Template]:
    """The model and the template, once a process."""
    model = Engine.load(tools.model, tools.device, refine=tools.refine)
    return model, Template.load(tools.template).select(tools.names)


def describe(job: IndexJob) -> Entry | Refused:
    """The entry of one exam."""
    model, template = loaded(job.tools)
    try:
        with warnings.catch_warnings():
            # What is unusual about an exam shows in its fit; thousands of lines would hide what matters.
            warnings.simplefilter("ignore")
            # The key is that of the files as they are read now.
            volume = read_volume(job.path, notes=[], kind=job.kind)
            found = model.map_exam(volume)
            shown = in_view(found, volume.grid)
            values = facts(
                model, template, volume, found, shown, trust=job.tools.trust, sides=job.tools.sides
            )
    except DataError as error:
        return Refused(job.id, str(error))
    cells = packed(appearance(found, shown)) if found.fit.known is not False else b""
    return Entry(job.id, str(job.path), job.key, values | {"labelled": int(job.labelled)}, cells)


def template_digest(template: Template) -> str:
    """Twelve hexadecimal digits that identify the masks of a template, and what its trust was calibrated with."""
    digest = hashlib.sha256(template.masks.tobytes())
    boxes = [(box.name, box.centre.tolist(), box.axes.tolist()) for box in template.marks.boxes]
    digest.update(json.dumps([template.names, template.meta.get("trust"), boxes]).encode())
    return digest.hexdigest()[:12]


def content_key(path: Path) -> str:
    """What changes when the files of an exam change: the names, sizes and times of all of them.

    Raises :class:`OSError` where they are not there.
    """
    digest = hashlib.sha256()
    for file in image_files(path):
        status = file.stat()
        digest.update(
            f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:16]
