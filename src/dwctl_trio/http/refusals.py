"""Answers that no application gives: to what is no request, and their rendering."""

from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from uuid import uuid4

from dwctl_trio.protocol.error_body import error_body

_NOT_HTTP = ("The request is not valid HTTP/1.1.", "invalid_request")
_REFUSALS = {
    431: (
        "The request line and the headers are too large: at most {head_bytes_max} bytes are allowed, all together.",
        "headers_too_large",
    ),
    501: (
        "Unsupported transfer coding: send the body with 'Content-Length', or with 'Transfer-Encoding: chunked' alone.",
        "unsupported_transfer_coding",
    ),
    505: (
        "Unsupported HTTP version: send HTTP/1.1; HTTP/2 is for a proxy in front to speak.",
        "unsupported_http_version",
    ),
}
"""What is said, and its code, by status; anything else is not HTTP."""

UNREAD_BYTES_MAX = 64 * 1024
"""Of a refused request; reading more costs more than a new connection."""


def refuse_malformed(status: int, head_bytes_max: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of the answer *status* to what is not HTTP as it is spoken here; it ends the connection.

    Args:
        status: From whoever parsed it.
        head_bytes_max: How large a head may be.
    """
    message, code = _REFUSALS.get(status, _NOT_HTTP)
    body = error_body(message.format(head_bytes_max=head_bytes_max), "invalid_request_error", code=code)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", f"req_{uuid4().hex}".encode()),
    ]
    return headers, body


def render_answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole answer, dated now."""
    lines = [
        status_line(status).encode(),
        *(b"%s: %s" % header for header in headers),
        b"date: " + http_date().encode(),
    ]
    return b"\r\n".join([*lines, b"", body])


@lru_cache(maxsize=100)
def status_line(status: int) -> str:
    """The first line of an answer, without its end."""
    known = {known.value: known.phrase for known in HTTPStatus}
    return f"HTTP/1.1 {status} {known.get(status, '')}"


def http_date() -> str:
    """The present second, as the ``Date`` header has it."""
    return _date_of(int(time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)
