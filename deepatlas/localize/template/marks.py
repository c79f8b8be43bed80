"""Points, lines and boxes of a template: named places in coordinates of the atlas, and how the file holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain

import numpy as np

from deepatlas.errors import DeepAtlasError
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups, Point, Polyline


def check_marks(marks: Markups, what: str = "Template") -> None:
    """Raise :class:`~deepatlas.errors.DeepAtlasError` unless names are distinct in each kind and every point is placed.

    ``what`` begins the message.
    """
    kinds = {
        "points": [point.name for point in marks.points],
        "lines": [line.name for line in marks.lines],
        "boxes": [box.name for box in marks.boxes],
    }
    for kind, names in kinds.items():
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DeepAtlasError(f"{what}: two {kind} are called {twice[0]!r}; rename one of them")
        if "" in names:
            raise DeepAtlasError(f"{what}: one of the {kind} has no name; give it one")
    if nowhere := [point.name for point in marks.points if point.position is None]:
        raise DeepAtlasError(f"{what}: the point {nowhere[0]!r} has no position; place it or leave it out")


def names_of_marks(marks: Markups) -> list[str]:
    """All names, each once."""
    names = chain(
        (p.name for p in marks.points), (x.name for x in marks.lines), (b.name for b in marks.boxes)
    )
    return list(dict.fromkeys(names))


def some_marks(marks: Markups, names: Iterable[str]) -> Markups:
    """Those with one of ``names``, in the order of the names."""
    order = {name: i for i, name in enumerate(names)}

    def place(item: Point | Polyline | Box) -> int:
        return order[item.name]

    return Markups(
        tuple(sorted((p for p in marks.points if p.name in order), key=place)),
        tuple(sorted((line for line in marks.lines if line.name in order), key=place)),
        tuple(sorted((box for box in marks.boxes if box.name in order), key=place)),
    )


def renamed_marks(marks: Markups, names: dict[str, str]) -> Markups:
    """With new names for some, ``{old: new}``."""

    def new(name: str) -> str:
        return names.get(name, name)

    return Markups(
        tuple(Point(new(p.name), p.position, p.note) for p in marks.points),
        tuple(Polyline(new(line.name), line.points, line.closed) for line in marks.lines),
        tuple(Box(new(b.name), b.centre, b.axes) for b in marks.boxes),
    )


def joined_marks(parts: Iterable[Markups]) -> Markups:
    """All of several, one after the other."""
    parts = list(parts)
    return Markups(
        tuple(chain.from_iterable(p.points for p in parts)),
        tuple(chain.from_iterable(p.lines for p in parts)),
        tuple(chain.from_iterable(p.boxes for p in parts)),
    )


def marks_to_json(marks: Markups) -> str:
    """The text that a template file holds."""
    return json.dumps(
        {
            "points": [{"name": p.name, "at": _list(p.position)} for p in marks.points],
            "lines": [
                {"name": line.name, "closed": line.closed, "points": _list(line.points)}
                for line in marks.lines
            ],
            "boxes": [
                {"name": b.name, "centre": _list(b.centre), "axes": _list(b.axes)} for b in marks.boxes
            ],
        },
        allow_nan=False,
    )


def marks_from_json(text: str) -> Markups:
    """What :func:`marks_to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    found = json.loads(text)
    return Markups(
        tuple(Point(p["name"], np.array(p["at"], dtype=np.float64)) for p in found["points"]),
        tuple(
            Polyline(x["name"], np.array(x["points"], dtype=np.float64), x["closed"]) for x in found["lines"]
        ),
        tuple(Box(b["name"], np.array(b["centre"]), np.array(b["axes"])) for b in found["boxes"]),
    )


def _list(array: np.ndarray | None) -> object:
    return None if array is None else array.tolist()
