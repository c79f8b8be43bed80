"""Who may ask the server of the page for anything: the browser that was given its address, and nobody else.

A server on the loopback can be reached by every program of the machine, and by every web page that the browser of the
user has open. A page elsewhere can send requests here although it cannot read most answers, and with a name that
resolves to 127.0.0.1 (DNS rebinding) it could read them as well. Therefore every request must name this server as its
host, come from a page of this server or from the address bar, and carry a cookie that only the address with the token
gives.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost", "[::1]")
# The largest body of a request: a painted mask of 256³ voxels as bits, in base64.
MAX_BODY = 4 << 20
# Who may have caused a request, by what the browser says: a page of this server, or the user through the address bar.
_OWN_SITES = ("same-origin", "none")
# Sent with every answer. Scripts and styles come from files of this server alone, so that a name of a file or of a
# structure can never become one; nothing is stored, guessed, framed, or readable for other origins.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Accept-Ranges": "none",
}


class Headers(Protocol):
    """The headers of a request, as ``email.message.Message`` holds them."""

    def get_all(self, name: str) -> list[str] | None: ...


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: a status of HTTP and a line for the reader."""

    status: HTTPStatus
    line: str


@dataclass(frozen=True)
class Gate:
    """What a request must show.

    Attributes:
        port: the port of the server.
        token: the secret in the address that the user is given.
        cookie: the secret that the browser gets for it. It is another one, since addresses end up in histories.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def address(self) -> str:
        """The address that lets a browser in."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        """Cookies do not tell the ports of a host apart, so that the name must."""
        return f"deepatlas-view-{self.port}"

    @property
    def set_cookie(self) -> str:
        """The header that gives the cookie to a browser. Scripts cannot read it, and other sites do not send it."""
        return f"{self.cookie_name}={self.cookie}; Path=/; HttpOnly; SameSite=Strict"

    def origin_refused(self, headers: Headers) -> Refusal | None:
        """Whether a request names another host, or was caused by a page of another site.

        Everything is compared with the list of this server's own names; a header is never compared with another one.
        """
        hosts = [f"{name}:{self.port}" for name in _NAMES]
        if self.port == 80:
            hosts += _NAMES
        named = headers.get_all("Host") or []
        if len(named) != 1 or named[0].strip().lower() not in hosts:
            return Refusal(HTTPStatus.MISDIRECTED_REQUEST, "this server is not the host that was asked for")
        origins = [f"http://{host}" for host in hosts]
        if any(origin.strip().lower() not in origins for origin in headers.get_all("Origin") or []):
            return Refusal(HTTPStatus.FORBIDDEN, "a page of another site may not ask here")
        if any(site.strip().lower() not in _OWN_SITES for site in headers.get_all("Sec-Fetch-Site") or []):
            return Refusal(HTTPStatus.FORBIDDEN, "a page of another site may not ask here")
        return None

    def right_token(self, given: str) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        return _same(given, self.token)

    def cookie_refused(self, headers: Headers) -> Refusal | None:
        """Whether a request lacks the cookie."""
        for line in headers.get_all("Cookie") or []:
            try:
                morsel = SimpleCookie(line).get(self.cookie_name)
            except CookieError:
                continue
            if morsel and _same(morsel.value, self.cookie):
                return None
        return Refusal(
            HTTPStatus.FORBIDDEN, "open the address that deepatlas view printed; it ends in ?token=…"
        )


def body_refused(headers: Headers) -> Refusal | None:
    """Whether the body of a request is too large, of unknown length, or not JSON.

    A form of another site can send neither this content type nor, without being asked about it, any header.
    """
    kinds = headers.get_all("Content-Type") or []
    if [kind.partition(";")[0].strip().lower() for kind in kinds] != ["application/json"]:
        return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    lengths = headers.get_all("Content-Length") or []
    if headers.get_all("Transfer-Encoding") or len(lengths) != 1 or not lengths[0].strip().isdecimal():
        return Refusal(HTTPStatus.LENGTH_REQUIRED, "the body must have one Content-Length")
    if len(lengths[0]) > 12 or int(lengths[0]) > MAX_BODY:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"a body may have {MAX_BODY >> 20} MiB, and this one is larger",
        )
    return None


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
