"""Plan the exams of image files: a task for every CT, with the label images and label tables that belong to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.intake.digest import digest
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.match import Image, match
from deepatlas.intake.find.naming import exam_name, folder_name, folder_of, inner_path, stem_of
from deepatlas.intake.find.task import RECIPE, ExamSource, Plan, Task
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import structure_names
from deepatlas.intake.structures.tables import Table, no_ct, rank, read_table
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.glance import Glance, Holds

# The tables that are read from the folder above a source, for one table of several splits of a data set.
_ABOVE = ("labels.json", "dataset.json")


def opens_labels(task: Task) -> bool:
    """Whether planning has to open the label images of a task.

    A label table states the names of its structures itself, in its own spelling.
    """
    if not task.labels:
        return False
    alone = any(naming.alone for naming in task.naming.values())
    return alone or not (task.source_labels and task.names is None)


def plan_pair(task: Task) -> Plan:
    """Plan the exam of a CT image and list the structures of its label images, as far as headers tell."""
    source = ExamSource(task.key, task.name, image=task.image, labels=task.labels, naming=task.naming)
    structures: list[str] = []
    if opens_labels(task):
        files = [f for f in task.labels if not task.source_labels or task.naming[f.name].alone or task.names]
        structures = structure_names(
            files, names=task.names, source_labels=task.source_labels, naming=task.naming
        )
    return Plan(task.key, task.name, "", source, tuple(structures), (), task.source_labels, task.digest)


def image_tasks(
    catalogue: Catalogue, src: Path, names: NameMap | None, refusals: list[Refusal]
) -> Iterator[Task]:
    """A task for every CT image, with the label images that belong to it. Others are appended to ``refusals``."""
    tables = _tables(catalogue, src, refusals)
    # Below a table that cannot be read, no other one counts.
    labelled = {
        folder: table and table.labels for folder, table in tables.items() if table is None or table.labels
    }
    glances = catalogue.glances()
    unknown = Glance(Holds.UNKNOWN)
    images = [Image(f, glances.get(f.name, unknown)) for _, files in catalogue.images() for f in files]
    matched = match(images)
    refusals += [Refusal(found.name, reason) for found, reason in matched.refused]
    for ct in matched.cts:
        if reason := _other_channel(ct, tables):
            refusals.append(Refusal(ct.name, reason))
            continue
        labels = [found for found, _ in matched.labels.get(ct.name, ())]
        naming = {found.name: name for found, name in matched.labels.get(ct.name, ())}
        table = nearest_table(folder_of(labels[0].name) if labels else folder_of(ct.name), labelled)
        if naming and all(name.alone for name in naming.values()):
            table = None
        stats = [(f.name, catalogue.stat(f.name)) for f in (ct, *labels)]
        made_of = digest(RECIPE, table, names and names.entries, stats, sorted(naming.items()))
        yield Task(
            ct.name,
            exam_name(ct),
            image=ct,
            labels=tuple(labels),
            naming=naming,
            names=names,
            source_labels=table,
            digest=made_of,
        )


def _tables(catalogue: Catalogue, src: Path, refusals: list[Refusal]) -> dict[str, Table | None]:
    """The label table of every folder that has one; None for one that cannot be read."""
    tables: dict[str, Table | None] = {}
    found = catalogue.tables()
    if not any(folder_of(f.name) == "" for f in found):
        above = Path(os.path.abspath(src)).parent
        found += [Found(above / name, name) for name in _ABOVE if (above / name).is_file()]
    for file in sorted(found, key=lambda f: (folder_of(f.name), rank(inner_path(f.name).name), f.name)):
        folder = folder_of(file.name)
        if (held := tables.get(folder)) is not None and held.labels:
            continue
        try:
            tables[folder] = read_table(file.path, inner_path(file.name).name)
        except DataError as error:
            tables.setdefault(folder, None)
            reason = re.sub(rf"^{re.escape(str(file.path))}: ", "", str(error))
            refusals.append(Refusal(file.name, f"not a label table: {reason}"))
    return tables


def _other_channel(ct: Found, tables: Mapping[str, Table | None]) -> str:
    """Why an image of a data set with a ``dataset.json`` is no CT, or the empty string."""
    if not folder_name(folder_of(ct.name)).startswith("images"):
        return ""
    table = nearest_table(folder_of(ct.name), {f: t for f, t in tables.items() if t and t.channels})
    if table is None:
        return ""
    number = re.search(r"_(\d{4})$", stem_of(ct))
    index = int(number[1]) if number and len(table.channels) > 1 else 0
    channel = table.channels[index] if index < len(table.channels) else ""
    return (
        f"dataset.json says that its channel is {channel[:20]}, no CT; give the CT alone"
        if no_ct(channel)
        else ""
    )


def nearest_table(folder: str, tables: Mapping[str, Any]) -> Any:
    """The table of the folder or of the nearest one above it."""
    while True:
        if folder in tables:
            return tables[folder]
        if not folder:
            return None
        if "/" in folder.rpartition("!")[2]:
            folder = folder.rpartition("/")[0]
        elif folder.endswith("!"):
            # After the root of an archive comes the folder in which the archive lies.
            folder = folder_of(folder[:-1])
        elif "!" in folder:
            folder = folder.rpartition("!")[0] + "!"
        else:
            folder = ""
