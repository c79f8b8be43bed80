"""Marks as the page sends them to its server."""

from __future__ import annotations

import numpy as np

from deepatlas.space.labels import BoxMask
from deepatlas.view.marks import mask_to_dict


def point(exam, at=(22.0, 4.0, -8.0), name="tip", identity="p1"):
    return {"id": identity, "kind": "point", "name": name, "exam": exam, "at": list(at)}


def painted(exam, grid, centre, radius, name="lump", identity="m1"):
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    place = grid.voxel_to_world(np.stack([x, y, z], axis=-1))
    mask = BoxMask.of(((place - centre) ** 2).sum(-1) < radius**2)
    return {"id": identity, "kind": "mask", "name": name, "exam": exam, "mask": mask_to_dict(mask)}


def put(client, *marks):
    return client.post("/api/marks/change", {"put": list(marks), "delete": []})
