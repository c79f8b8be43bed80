"""A running server of the page over exams with known anatomy, and a client that can ask it for anything."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, AffineModel, exam, grid_of

from deepatlas.io.codec import write_volume
from deepatlas.localize.template.file import Template
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume
from deepatlas.view.gallery import Gallery
from deepatlas.view.server import Server
from deepatlas.view.session import Session


def shifted(place: np.ndarray) -> np.ndarray:
    """The anatomy of the exam ``moved``: everything lies 12 mm to the right, 6 mm behind and 5 mm higher."""
    return place - np.array([12.0, -6.0, 5.0])


# The exam that the model does not know.
STRANGER = "stranger"
# Exams by their names: the grid, and where anatomy is in them. The large one is subsampled.
EXAMS = {
    "plain": (GRIDS["plain"], None),
    "moved": (GRIDS["anisotropic"], shifted),
    "oblique": (GRIDS["oblique"], None),
    STRANGER: (GRIDS["coarse"], None),
    "large": (grid_of(spacing=(0.5, 2.0, 4.0)), None),
}


class KnowingModel(AffineModel):
    """The affine model, which knows all exams but one."""

    name = "affine"

    def __init__(self) -> None:
        super().__init__(size=64, maps={name: to for name, (_, to) in EXAMS.items() if to})

    def map_exam(self, volume: Volume):
        found = super().map_exam(volume)
        # Where nobody gave it a name, an exam is called as its file.
        stranger = STRANGER in (volume.name, Path(volume.name).parent.name)
        fit = Fit(0.1 if stranger else 0.8, 0.5)
        return replace(found, fit=fit)


def template(model: AffineModel, size: int = 64) -> Template:
    """The ellipsoids of the anatomy in the coordinates of the model."""
    axis = np.linspace(-1, 1, size) * SCALE
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    place = np.stack([x, y, z], axis=-1)
    masks = [((((place - c) / r) ** 2).sum(-1) < 1) for _, c, r in ANATOMY.values()]
    meta = {"model": model.fingerprint}
    return Template(np.stack(masks).astype(np.float32), tuple(ANATOMY), tuple(LABELS.values()), meta)


def write_exams(folder: Path, names: tuple[str, ...] = tuple(EXAMS)) -> Path:
    """Write exams as ``<folder>/<name>/ct.nii.gz``."""
    for name in names:
        grid, to_anatomy = EXAMS[name]
        ct, _ = exam(grid, name, to_anatomy)
        write_volume(folder / name / "ct.nii.gz", Volume(np.rint(ct.array).astype(np.int16), ct.grid))
    return folder


@contextlib.contextmanager
def serving(session: Session, port: int = 0) -> Iterator[Server]:
    """A server that answers until the end of the block."""
    server = Server(session, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def session_of(
    folder: Path, opened: tuple[str, ...] = (), with_template: bool = True, **more: Any
) -> Session:
    """A session over the exams of a folder, with the affine model."""
    model = KnowingModel()
    gallery = Gallery([folder])
    ids = [gallery.named(name).id for name in opened]
    made = template(model) if with_template else None
    return Session(gallery, lambda: (model, made), title="affine", opened=ids, **more)  # type: ignore[arg-type]


class Client:
    """Sends exactly what it is told to a server, as no browser would."""

    def __init__(self, server: Server) -> None:
        self.port, self.gate = server.gate.port, server.gate
        self.cookie = f"{server.gate.cookie_name}={server.gate.cookie}"

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        cookie: bool = True,
    ) -> http.client.HTTPResponse:
        """Send a request with the right host and cookie, unless ``headers`` say otherwise; None leaves one out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if cookie:
            sent["Cookie"] = self.cookie
        if body is not None:
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        sent |= headers or {}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        response.data = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    def get(self, path: str) -> Any:
        """The JSON of a path."""
        response = self.ask(path)
        assert response.status == 200, response.data  # type: ignore[attr-defined]
        return json.loads(response.data)  # type: ignore[attr-defined]

    def post(self, path: str, data: Any, status: int = 200) -> Any:
        """The JSON that a path answers to this one."""
        response = self.ask(path, "POST", body=json.dumps(data).encode())
        assert response.status == status, response.data  # type: ignore[attr-defined]
        return json.loads(response.data)  # type: ignore[attr-defined]

    def download(self, data: Any) -> tuple[str, bytes]:
        """A file of results: its name and its bytes; ``note`` is what was said about it."""
        response = self.ask("/api/download", "POST", body=json.dumps(data).encode())
        assert response.status == 200, response.data  # type: ignore[attr-defined]
        name = response.getheader("Content-Disposition").partition('filename="')[2].rstrip('"')
        self.note = unquote(response.getheader("X-DeepATLAS-Note") or "")
        return name, response.data  # type: ignore[attr-defined]


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a body of :mod:`deepatlas.view.pack`, read without its code."""
    import gzip

    data = gzip.decompress(body)
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    arrays = {}
    for name, about in header["arrays"].items():
        kind = np.dtype(about["dtype"]).newbyteorder("<")
        count = int(np.prod(about["shape"]))
        at = 4 + length + about["at"]
        arrays[name] = np.frombuffer(data, kind, count, at).reshape(about["shape"])
    return header, arrays


def grid_in(header: dict[str, Any]) -> Grid:
    """The grid of a body."""
    return Grid(tuple(header["shape"]), np.array(header["affine"]))
