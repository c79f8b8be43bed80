"""The tables by which data sets name the ids of their label images.

Read are ``labels.json`` (``{"liver": 1}``), the ``dataset.json`` of the Medical Segmentation Decathlon and of nnU-Net
(``"labels": {"1": "liver"}`` or ``{"liver": 1}``; in Learn2Reg its name has a prefix), and the ``dseg.tsv`` of BIDS
(columns ``index`` and ``name``).
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.cohort import read_labels
from deepatlas.space.constants import MAX_LABEL

_CURE = 'write a labels.json {"name": id, …} beside it'
# Words of ``modality`` or ``channel_names`` for images that are no CT.
_NO_CT = frozenset(
    "mr mri mrt t1 t1w t1c t1gd t1ce t2 t2w t2f flair adc dwi pet pt suv us ultrasound".split()
)


@dataclass(frozen=True)
class Table:
    """What a table states: ``{name: id}``, and what the channels of the images are ("CT"), in their order."""

    labels: dict[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a file of this name (without folders) may be a table."""
    name = name.lower()
    return name in ("labels.json", "dataset.json") or name.endswith(("_dataset.json", "dseg.tsv"))


def rank(name: str) -> int:
    """The order in which the tables of one folder count: what was written for this program comes first."""
    return 0 if name.lower() == "labels.json" else 1 if name.lower().endswith(".json") else 2


def read_table(path: Path, name: str) -> Table:
    """Read a table. ``name`` is what the file is called (``path`` may be a copy).

    Raises :class:`~deepatlas.errors.DataError` if it is no table that is understood. A ``dataset.json`` of another
    program, without ``labels``, is an empty table.
    """
    if name.lower() == "labels.json":
        return Table(read_labels(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read: {error}; {_CURE}") from error
    if name.lower().endswith(".tsv"):
        return Table(_checked([(row[0], row[1]) for row in _rows(text, path)], path))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON; {_CURE}") from error
    if not isinstance(content, dict):
        return Table()
    labels = content.get("labels")
    # Learn2Reg nests its tables.
    while isinstance(labels, dict) and len(labels) == 1 and isinstance(next(iter(labels.values())), dict):
        labels = next(iter(labels.values()))
    channels = content.get("channel_names") or content.get("modality")
    return Table(
        _checked(list(labels.items()), path) if isinstance(labels, dict) else {},
        tuple(str(v) for v in channels.values()) if isinstance(channels, dict) else (),
    )


def no_ct(channel: str) -> bool:
    """Whether a channel is known to be something else than a CT."""
    return not _NO_CT.isdisjoint(re.findall(r"[^\W_]+", channel.lower()))


def _rows(text: str, path: Path) -> list[tuple[str, str]]:
    rows = list(csv.reader(text.splitlines(), delimiter="\t"))
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "index" not in head or "name" not in head:
        raise DataError(f"{path}: has no columns index and name; {_CURE}")
    places = head.index("index"), head.index("name")
    return [(row[places[0]], row[places[1]]) for row in rows[1:] if len(row) > max(places)]


def _checked(pairs: list[tuple[Any, Any]], path: Path) -> dict[str, int]:
    """``{name: id}`` of pairs in either order, without the background."""
    labels: dict[str, int] = {}
    for key, value in pairs:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list):
            raise DataError(f"{path}: labels has regions of several ids ({str(key)[:40]!r}); {_CURE}")
        name, number = (value, key) if isinstance(value, str) and _id(value) is None else (key, value)
        index = _id(number)
        if index is None or index > MAX_LABEL:
            raise DataError(f"{path}: labels gives no id for {str(name)[:40]!r}; {_CURE}")
        # Of the characters of a name, a dataset takes letters, digits, space, _ and -.
        name = re.sub(r"[^\w\- ]+", "_", str(name).strip()).strip("_ ")
        if index == 0 or not name:
            continue
        if name in labels or index in labels.values():
            raise DataError(f"{path}: labels names {name!r} or the id {index} twice; {_CURE}")
        labels[name] = index
    return labels


def _id(value: object) -> int | None:
    """The id that a number or its digits state, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and value >= 0:
        return value
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else None
