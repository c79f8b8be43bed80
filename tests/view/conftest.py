"""One browser and one server for the tests of a file; three of its exams are open at first."""

from __future__ import annotations

import pytest
from headless import browser
from on_page import opened
from served import Client, serving, session_of, write_exams


@pytest.fixture(scope="module")
def chromium():
    with browser() as it:
        yield it


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_exams(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server(folder):
    with serving(session_of(folder, ("plain", "moved", "oblique"))) as it:
        yield it


@pytest.fixture
def client(server):
    it = Client(server)
    yield it
    marks = it.post("/api/marks", {})["marks"]
    it.post("/api/marks/change", {"delete": [mark["id"] for mark in marks]})


@pytest.fixture(scope="module")
def ids(server):
    return {exam.name: exam.id for exam in server.session.gallery}


@pytest.fixture
def page(chromium, server, client):
    it = opened(chromium, server)
    yield it
    assert it.complaints() == []
    it.close()
