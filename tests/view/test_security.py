"""Attacks on the running server of the page, one for each line of its security list."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from served import Client, serving, session_of, write_exams
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.io.codec import write_volume
from deepatlas.view.gallery import Gallery
from deepatlas.view.security import MAX_BODY, Gate
from deepatlas.view.server import STATIC, Server

ROUTES = ["/", "/app.js", "/style.css", "/api/session", "/api/model", "/api/exam/atlas/picture"]
POSTS = ["/api/marks", "/api/marks/change", "/api/carry", "/api/download"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = write_exams(tmp_path_factory.mktemp("data"), ("plain",))
    with serving(session_of(folder)) as server:
        yield server


@pytest.fixture
def client(served):
    return Client(served)


def test_the_server_listens_on_the_loopback_alone(served):
    assert served.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        try:
            # The address by which other machines reach this one; no packet is sent.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(("192.0.2.1", 9))
                outside = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address")
        if outside.startswith("127."):
            pytest.skip("this machine has no other address")
        other.settimeout(5)
        assert other.connect_ex((outside, served.gate.port)) != 0


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(client):
    answer = client.ask(f"/?token={client.gate.token}", cookie=False)
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    value, *flags = [part.strip() for part in answer.getheader("Set-Cookie").split(";")]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(flags)
    # The secret of the cookie is not the one that is left in the history of the browser.
    assert value.partition("=")[2] == client.gate.cookie != client.gate.token
    assert client.ask("/", headers={"Cookie": f"other=1; {value}"}, cookie=False).status == 200


@pytest.mark.parametrize("token", ["", "x", "ä", "{token}x", "{token[:-1]}", "%00"])
def test_a_wrong_token_gives_no_cookie(client, token):
    wrong = token.replace("{token}x", client.gate.token + "x").replace("{token[:-1]}", client.gate.token[:-1])
    answer = client.ask(f"/?token={wrong if '%' in wrong else quote(wrong)}", cookie=False)
    assert answer.status == 403 and answer.getheader("Set-Cookie") is None


def test_tokens_are_long_and_random():
    gates = [Gate(1) for _ in range(8)]
    secrets = {gate.token for gate in gates} | {gate.cookie for gate in gates}
    assert len(secrets) == 16 and all(len(secret) >= 43 for secret in secrets)
    # Neither is in what a traceback or a log would print.
    assert not any(secret in repr(gate) for secret in secrets for gate in gates)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "cookie", [None, "deepatlas-view-{port}=wrong", "deepatlas-view-1={cookie}", "{cookie}"]
)
def test_every_route_asks_for_the_cookie(client, path, cookie):
    given = cookie and cookie.format(port=client.port, cookie=client.gate.cookie)
    answer = client.ask(path, headers={"Cookie": given}, cookie=False)
    assert answer.status == 403
    assert b"deepatlas view printed" in answer.data


@pytest.mark.parametrize("path", POSTS)
def test_every_post_asks_for_the_cookie(client, path):
    assert client.ask(path, "POST", body=b"{}", cookie=False).status == 403
    assert client.ask(path, "POST", body=b"{}").status != 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}",
        "127.0.0.1:{port}.evil.example", "0.0.0.0:{port}", "[::]:{port}", "2130706433:{port}", "", None,
    ],
)  # fmt: skip
def test_another_host_is_refused(client, host):
    """As after DNS rebinding, where the name of an attacker leads here."""
    answer = client.ask("/api/session", headers={"Host": host and host.format(port=client.port)})
    assert answer.status in (400, 421)
    assert b"plain" not in answer.data


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_the_own_names_are_the_only_hosts(client, host):
    assert client.ask("/api/session", headers={"Host": host.format(port=client.port)}).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:1",
        "http://127.0.0.1:{port}.evil.example", "file://", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/api/session", "/api/marks/change"])
def test_another_origin_is_refused_whatever_the_host_says(client, origin, path):
    origin = origin.format(port=client.port)
    # A rebound name is in both headers: they must not be compared with each other.
    for host in (f"127.0.0.1:{client.port}", origin.partition("://")[2] or "evil.example"):
        method, body = ("GET", None) if path == "/api/session" else ("POST", b'{"put": [], "delete": []}')
        answer = client.ask(path, method, {"Origin": origin, "Host": host}, body)
        assert answer.status in (400, 403, 421)
        assert b"plain" not in answer.data


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_what_a_page_of_another_site_causes_is_refused(client, site):
    assert client.ask("/api/session", headers={"Sec-Fetch-Site": site}).status == 403
    assert client.ask(f"/?token={client.gate.token}", headers={"Sec-Fetch-Site": site}).status == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_itself_and_the_address_bar_are_answered(client, site):
    assert client.ask("/api/session", headers={"Sec-Fetch-Site": site}).status == 200


@pytest.mark.parametrize("path", [*ROUTES, "/nothing", "/?token=wrong"])
def test_every_answer_has_the_headers_that_protect_it_and_none_that_opens_it(client, path):
    answer = client.ask(path, headers={"Origin": f"http://127.0.0.1:{client.port}"})
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    policy = answer.getheader("Content-Security-Policy")
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    names = {name.lower() for name, _ in answer.getheaders()}
    assert not any(name.startswith("access-control-") for name in names)
    assert "Python" not in str(answer.getheaders())


def test_a_preflight_of_another_site_gets_no_permission(client):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.ask("/api/marks/change", "OPTIONS", headers)
    assert answer.status >= 400
    assert not any(name.lower().startswith("access-control-") for name, _ in answer.getheaders())


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "PATCH", "TRACE", "CONNECT"])
def test_other_methods_are_refused(client, method):
    assert client.ask("/api/session", method).status in (400, 405, 501)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_a_body_that_a_form_could_send_is_refused(client, kind):
    answer = client.ask("/api/marks/change", "POST", {"Content-Type": kind}, b'{"put": [], "delete": []}')
    assert answer.status == 415


def test_a_body_must_say_its_length_and_be_small(client):
    assert client.ask("/api/marks", "POST", {"Content-Length": str(MAX_BODY + 1)}, b"{}").status == 413
    assert client.ask("/api/marks", "POST", {"Content-Length": "9" * 400}, b"{}").status == 413
    for length in (None, "-1", "1e3", ""):
        assert client.ask("/api/marks", "POST", {"Content-Length": length}, b"{}").status in (400, 411)
    assert client.ask("/api/marks", "POST", {"Transfer-Encoding": "chunked"}, b"{}").status == 411


def test_what_a_refused_body_holds_is_no_further_request(client):
    """Otherwise the body could hold one with all the right headers."""
    inner = f"GET /api/session HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nCookie: {client.cookie}\r\n\r\n".encode()
    outer = (
        f"POST /api/marks HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(inner)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(outer + inner)
        got = b""
        while part := connection.recv(65536):
            got += part
    assert got.count(b"HTTP/1.1 ") == 1 and b"421" in got.split(b"\r\n")[0]


@pytest.mark.parametrize("body", [b"", b"[]", b"nothing", b"\xff", b"[" * 100_000, b'"text"'])
def test_a_body_that_is_no_object_gives_one_line(client, body):
    answer = client.ask("/api/marks/change", "POST", body=body)
    assert answer.status == 422
    assert json.loads(answer.data) == {"error": "the body must be a JSON object"}


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/static/app.js", "//etc/passwd", "/etc/passwd",
        "/__init__.py", "/index.html/../../server.py", "/app.js%00.html", "/api/exam/../session",
        "/api/exam/%2fetc%2fpasswd/picture", "/api/exam/plain/picture", "/api/exam/ct.nii.gz/picture",
        "/api/exam//picture", "/api/exam/atlas/coordinates", "/api/exam/atlas/ct.nii.gz",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(client, path):
    answer = client.ask(path)
    assert answer.status == 404
    assert (
        json.loads(answer.data)["error"] if path.startswith("/api/") else answer.data.startswith(b"deepatlas")
    )


def test_the_files_of_the_page_are_a_fixed_list_and_all_there():
    import deepatlas.view as view

    folder = Path(view.__file__).parent / "static"
    assert sorted(path.name for path in folder.iterdir()) == sorted(STATIC)


def test_the_ids_of_exams_say_nothing_and_change(tmp_path):
    folder = write_exams(tmp_path, ("plain", "moved"))
    one, two = Gallery([folder]), Gallery([folder])
    assert not set(one.exams) & set(two.exams)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{12}", i) and i not in str(folder) for i in one.exams)


def test_no_answer_tells_where_the_files_are(client, served):
    folder = str(next(iter(served.session.gallery)).files.ct.parents[1])
    exam = next(iter(served.session.gallery)).id
    for path in ("/api/session", "/api/model"):
        assert folder not in client.ask(path).data.decode()
    from served import unpack

    assert folder not in json.dumps(unpack(client.ask(f"/api/exam/{exam}/picture").data)[0])


def link(target: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(target, name, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("no symbolic links here")


def refused(gallery: Gallery, name: str) -> None:
    with pytest.raises(DataError, match="leads out of what was given") as caught:
        gallery.named(name).check()
    one_line(caught.value)


def test_a_link_out_of_the_given_folder_is_refused_and_one_within_it_is_not(tmp_path):
    secret = write_exams(tmp_path / "secret", ("plain",)) / "plain" / "ct.nii.gz"
    given = write_exams(tmp_path / "given", ("moved",))
    link(secret, given / "file" / "ct.nii.gz")
    link(secret.parent, given / "folder")
    link(given / "moved" / "ct.nii.gz", given / "within" / "ct.nii.gz")
    gallery = Gallery([given])
    refused(gallery, "file")
    refused(gallery, "folder")
    gallery.named("within").check()
    gallery.named("moved").check()


def test_a_link_in_a_dicom_folder_is_refused(tmp_path):
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(bytes(128) + b"DICM")
    series = tmp_path / "given" / "series"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(bytes(128) + b"DICM")
    link(secret, series / "2.dcm")
    refused(Gallery([tmp_path / "given"]), "series")


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_that_names_a_file_outside_is_refused(tmp_path, suffix):
    """The voxels of such an image would be any file of the machine."""
    grid = __import__("affine_model").grid_of(spacing=(20.0, 20.0, 20.0))
    from deepatlas.space.volume import Volume

    secret = tmp_path / "secret.raw"
    shape = grid.shape[::-1]
    secret.write_bytes(np.zeros(grid.shape, np.int16).tobytes())
    given = tmp_path / "given" / "exam"
    given.mkdir(parents=True)
    text = {
        ".mhd": f"ObjectType = Image\nNDims = 3\nDimSize = {' '.join(map(str, shape))}\nElementType = MET_SHORT\n"
        "ElementSpacing = 1 1 1\nElementDataFile = {file}\n",
        ".nhdr": f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {' '.join(map(str, shape))}\nencoding: raw\n"
        "endian: little\nspace: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "space origin: (0,0,0)\ndata file: {file}\n",
    }[suffix]
    (given / f"ct{suffix}").write_text(text.format(file="../../secret.raw"))
    refused(Gallery([tmp_path / "given"]), "exam")
    (given / "own.raw").write_bytes(secret.read_bytes())
    (given / f"ct{suffix}").write_text(text.format(file="own.raw"))
    Gallery([tmp_path / "given"]).named("exam").check()
    assert write_volume(given / "written.nii.gz", Volume(np.zeros(grid.shape, np.int16), grid)).is_file()


def test_a_file_that_became_a_link_after_the_start_is_refused(tmp_path):
    secret = write_exams(tmp_path / "secret", ("plain",)) / "plain" / "ct.nii.gz"
    given = write_exams(tmp_path / "given", ("moved",))
    with serving(session_of(given)) as server:
        client = Client(server)
        exam = client.get("/api/session")["exams"][0]["id"]
        (given / "moved" / "ct.nii.gz").unlink()
        link(secret, given / "moved" / "ct.nii.gz")
        answer = client.ask(f"/api/exam/{exam}/picture")
        assert answer.status == 422 and b"leads out" in answer.data


def test_ranges_are_not_served(client):
    whole = client.ask("/app.js")
    part = client.ask("/app.js", headers={"Range": "bytes=0-9"})
    assert part.status == 200 and part.data == whole.data
    assert part.getheader("Accept-Ranges") == "none" and part.getheader("Content-Range") is None


def test_the_page_holds_no_script_or_style_of_its_own_and_names_no_other_site():
    import deepatlas.view as view

    folder = Path(view.__file__).parent / "static"
    html = (folder / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|javascript:", html)
    for name in STATIC:
        text = (folder / name).read_text()
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"http://www\.w3\.org/2000/svg", "", text))
        assert not outside, (name, outside)
        # Names of files and structures are text, and never parts of a page.
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        )


def test_a_port_in_use_gives_one_line(served, tmp_path):
    session = session_of(write_exams(tmp_path, ("plain",)))
    with pytest.raises(DataError, match=f"port {served.gate.port}: is in use") as caught:
        Server(session, served.gate.port)
    one_line(caught.value)
