"""The server of the page: many requests at once, a model that loads late or not at all, and what ends the command."""

from __future__ import annotations

import threading

import h5py
import pytest
from affine_model import GRIDS
from page_marks import painted, put
from served import (
    EXAMS,
    Client,
    KnowingModel,
    serving,
    template,
)  # fmt: skip

from deepatlas.api import Model
from deepatlas.cli.main import build_parser, main
from deepatlas.errors import DeepAtlasError
from deepatlas.pretrained import FOLDER
from deepatlas.view.gallery import Gallery
from deepatlas.view.server import serve
from deepatlas.view.session import Session


@pytest.mark.slow(1)
def test_many_requests_at_once_pass_each_exam_through_the_network_once(folder):
    passes = []

    class Counting(KnowingModel):
        def map_exam(self, volume):
            passes.append(volume.name)
            return super().map_exam(volume)

    model = Counting()
    gallery = Gallery([folder])
    session = Session(gallery, lambda: (model, template(model)), title="counting")
    names = ("plain", "moved", "oblique")
    with serving(session) as server:
        client = Client(server)
        wanted = [
            f"/api/exam/{gallery.named(n).id}/{part}"
            for n in names
            for part in ("masks", "coordinates", "picture")
        ]
        threads = [threading.Thread(target=client.ask, args=(path,)) for path in wanted * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(passes) == sorted(names)


def test_the_exams_are_listed_before_the_model_is_loaded(folder):
    let = threading.Event()
    model = KnowingModel()

    def load():
        let.wait(20)
        return model, None

    with serving(Session(Gallery([folder]), load, title="slow")) as server:
        client = Client(server)
        assert [exam["name"] for exam in client.get("/api/session")["exams"]] == sorted(EXAMS)
        let.set()
        assert client.get("/api/model")["structures"] == []
        exam = client.get("/api/session")["exams"][0]["id"]
        assert b"no template was given" in client.ask(f"/api/exam/{exam}/masks").data


def test_a_model_that_cannot_be_loaded_ends_the_server(folder):
    from deepatlas.view.server import Server

    def load():
        raise DeepAtlasError("no such model")

    error = serve(Server(Session(Gallery([folder]), load, title="gone")))
    assert isinstance(error, DeepAtlasError) and str(error) == "no such model"


# -- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["headneck", "nowhere.nii.gz"], "nowhere.nii.gz: no such file or folder"),
        (["nothing", "--no-browser"], "no run folder or model file there"),
        (["headneck", "--template", "{other}", "--no-browser"], "made for the model affine-model"),
        (["headneck", "--template", "missing.h5", "--no-browser"], "no such template file"),
        (["headneck", "--port", "{port}", "--no-browser"], "is in use by another program"),
        (["headneck", "--marks", "{marks}", "--no-browser"], "damaged file of marks"),
        (["{model}", "--threshold", "0.4", "--no-browser"], "--threshold: is for the structures of a template"),
        (["{model}", "--shape-only", "--no-browser"], "--shape-only: is for the structures of a template"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_ends_the_command_with_one_line(arguments, line, server, tmp_path, capsys):
    other = tmp_path / "other.h5"
    template(KnowingModel()).save(other)
    marks = tmp_path / "marks.json"
    marks.write_text("{")
    model = FOLDER / "headneck" / "model.pt"
    given = [a.format(other=other, port=server.gate.port, marks=marks, model=model) for a in arguments]
    assert main(["view", *given, "--quiet"]) == 1
    printed = capsys.readouterr()
    # No address that would show nothing.
    assert printed.out == ""
    errors = [text for text in printed.err.splitlines() if "error" in text]
    assert len(errors) == 1 and line in errors[0]


def test_the_shipped_model_comes_with_its_template(folder):
    from deepatlas.cli.view import open_server

    args = build_parser().parse_args(
        [
            "view",
            "headneck",
            str(folder / "plain"),
            "--data",
            str(folder),
            "--threshold",
            "0.3",
            "--no-browser",
        ]
    )
    server = open_server(args)
    try:
        assert isinstance(server.session.model, Model)
        assert len(server.session.template.names) == 7 and server.session.threshold == 0.3
        # The exam that was named is shown at first, and all of the folder can be chosen.
        names = {exam.id: exam.name for exam in server.session.gallery}
        assert [names[i] for i in server.session.opened] == ["plain"] and len(names) == len(EXAMS)
    finally:
        server.server_close()


def test_a_template_file_is_what_the_page_says(client, tmp_path, ids):
    put(client, painted(ids["plain"], GRIDS["plain"], (10, 5, 0), 14))
    (tmp_path / "t.h5").write_bytes(client.download({"what": "template"})[1])
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["format"] == "deepatlas-template"
