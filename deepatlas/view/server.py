"""The server of the page: the standard library's, on the loopback, with a fixed list of what can be asked for."""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from deepatlas.errors import PROGRAM, DataError, DeepAtlasError
from deepatlas.view.security import HEADERS, HOST, Gate, Refusal, body_refused
from deepatlas.view.session import Session, to_json

# The files of the page and their types. No other file can be asked for, and no request holds a path.
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
STATIC = (
    "index.html", "style.css", "icon.svg", "app.js", "controls.js", "draw.js", "geometry.js", "marks.js", "net.js",
    "overlay.js", "panel.js", "state.js", "tools.js",
)  # fmt: skip
# A connection that sends nothing for so long is closed.
_IDLE_SECONDS = 60
_EXAM = re.compile(r"/api/exam/([A-Za-z0-9_-]{1,40})/(picture|coordinates|masks|trust)")


@cache
def _static(name: str) -> bytes:
    return resources.files("deepatlas.view").joinpath("static", name).read_bytes()


class Server(ThreadingHTTPServer):
    """Serves one session on 127.0.0.1.

    Attributes:
        session: what is shown.
        gate: who may ask.
    """

    daemon_threads = True
    # Pages that load at the same time open more connections than the five that wait by default.
    request_queue_size = 64
    # Another program on the port is an error, and not somebody to share it with.
    allow_reuse_address = sys.platform != "win32"
    allow_reuse_port = False

    def __init__(self, session: Session, port: int = 0) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            DataError: the port is in use or not permitted.
        """
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is in use by another program" if taken else f"cannot be used ({error.strerror})"
            raise DataError(f"port {port}: {reason}; choose another --port, or leave it out") from error
        self.session, self.gate = session, Gate(self.server_address[1])
        self.ended = False

    @property
    def address(self) -> str:
        """The address for the browser, with the token."""
        return self.gate.address

    def server_close(self) -> None:
        """End; connections that browsers keep open get no further answer."""
        self.ended = True
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"{PROGRAM}: warning: a request failed: {error!r}", file=sys.stderr, flush=True)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    command: str | None = None
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    # What is running here is nobody's business.
    server_version, sys_version = PROGRAM, ""

    def setup(self) -> None:
        super().setup()
        # Answers are small and many; waiting to fill a packet delays each by 40 ms.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a log would hold the token."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer(self._post)

    # -- answers -------------------------------------------------------------------------------------------------

    def _answer(self, route: Callable[[], None]) -> None:
        self._body_read = self.command == "GET"
        if self.server.ended:
            self.close_connection = True
            return
        try:
            if refusal := self.server.gate.origin_refused(self.headers):
                self._refuse(refusal)
            else:
                route()
        except KeyError:
            self._refuse(Refusal(HTTPStatus.NOT_FOUND, "there is no such thing here"))
        except DeepAtlasError as error:
            self._refuse(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._refuse(
                Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"an error of the program: {error!r}"[:300])
            )

    def _get(self) -> None:
        url = urlsplit(self.path)
        gate, session = self.server.gate, self.server.session
        if url.path == "/" and (given := parse_qs(url.query).get("token")):
            if gate.right_token(given[0]):
                self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, Location="/", Set_Cookie=gate.set_cookie)
            else:
                self._refuse(
                    Refusal(HTTPStatus.FORBIDDEN, "this is not the address that deepatlas view printed")
                )
            return
        if refusal := gate.cookie_refused(self.headers):
            self._refuse(refusal)
            return
        name = "index.html" if url.path == "/" else url.path.removeprefix("/")
        if name in STATIC:
            self._send(_static(name), f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8")
        elif url.path == "/api/session":
            self._json(session.about())
        elif url.path == "/api/model":
            self._json(session.about_model())
        elif found := _EXAM.fullmatch(url.path):
            body = getattr(session, found[2])(found[1])
            self._send(body, "application/octet-stream", Content_Encoding="gzip")
        else:
            raise KeyError(url.path)

    def _post(self) -> None:
        routes = {
            "/api/marks": self.server.session.all_marks,
            "/api/marks/change": self.server.session.change_marks,
            "/api/carry": self.server.session.carry,
        }
        if refusal := self.server.gate.cookie_refused(self.headers) or body_refused(self.headers):
            self._refuse(refusal)
            return
        path = urlsplit(self.path).path
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self._body_read = True
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise DataError("the body must be a JSON object")
        if path == "/api/download":
            # Imports all of the package, which the first look at the page does not need.
            from deepatlas.view.download import download

            name, body, note = download(self.server.session, data)
            disposition = f'attachment; filename="{name}"'
            # A header holds ASCII alone.
            self._send(
                body,
                "application/octet-stream",
                Content_Disposition=disposition,
                X_DeepATLAS_Note=quote(note),
            )
        else:
            self._json(routes[path](data))

    def _json(self, value: Any) -> None:
        self._send(to_json(value), "application/json")

    def _refuse(self, refusal: Refusal) -> None:
        if not self._body_read:
            # What is left of the request would be taken for the next one.
            self.close_connection = True
        # A request that cannot be parsed has neither.
        page = self.command == "GET" and not getattr(self, "path", "").startswith("/api/")
        if page:
            self._send(
                f"deepatlas view: {refusal.line}\n".encode(), "text/plain; charset=utf-8", refusal.status
            )
        else:
            self._send(to_json({"error": refusal.line}), "application/json", refusal.status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {
            **HEADERS,
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **named,
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses, such as another method, with the same headers."""
        self._body_read = False
        self._refuse(Refusal(HTTPStatus(code), message or HTTPStatus(code).phrase))


def serve(server: Server) -> BaseException | None:
    """Answer until the model cannot be loaded, which is returned, or the program is interrupted."""

    def watch() -> None:
        if server.session.failure() is not None:
            server.shutdown()

    threading.Thread(target=watch, daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
    return server.session.failure(0)
