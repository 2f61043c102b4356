"""Refusals at the door: an overloaded server answers new work before it has spent anything on it.

A request that is taken through the application only to be refused there costs a tenth of one that is served. Ten times
what a server can bear would then leave it nothing to serve with.

Rule 1: only what has a model called is refused here; health, metrics and GET are always let in.
Rule 2: whose request it is does not matter, for the bound is the process's; what is an owner's is ``admission``'s.
Rule 3: the answer is the one that the application would give.
Rule 4: who is let in counts at once, so that those who come in the same turn see it, until the application is done.
"""

import re
from collections.abc import Callable
from uuid import uuid4

import attrs

from dwctl_trio.domain.errors import Overloaded
from dwctl_trio.http.refusals import render_answer
from dwctl_trio.protocol.error_body import HttpError, http_error

PEEK_BYTES = 16 * 1024
"""What is looked at of a new connection; a request that is longer goes the ordinary way."""

_ROUTES = frozenset({
    b"/v1/responses", b"/v1/responses/input_tokens", b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings",
})  # fmt: skip
"""What has a model called."""
_METHOD = b"POST"
_HEAD = re.compile(rb"([A-Z]+) ([^ ?\r\n\0]+)(?:\?[^ \r\n\0]*)? HTTP/1\.1\r\n(?:[^\r\n\0]+\r\n)*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_NOT_PLAIN = re.compile(rb"\r\n(?:connection|transfer-encoding):", re.IGNORECASE)
_ANY_LENGTH = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)
_SENT_ID = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._:-]{1,128})[ \t]*\r\n", re.IGNORECASE)
_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@attrs.define(kw_only=True, eq=False)
class Door:
    """Whoever refuses before the application is asked."""

    find_overload: Callable[[], Overloaded | None]
    """Why nobody may begin at the moment."""
    note_request: Callable[[str, str, int], None]
    """Told method, route and status of each request that was refused."""
    enter: Callable[[], Callable[[], None]]
    """Counts a request as one that was let in; returns what ends that."""

    def let_in(self, method: bytes, target: bytes) -> Callable[[], None]:
        """Count a request that goes on, if its kind is counted; return what is to be called once, at its end."""
        return self.enter() if _calls_model(method, target) else _nothing

    def refuse(self, method: bytes, target: bytes) -> HttpError | None:
        """The refusal of a request; None if it may go on."""
        if not _calls_model(method, target):
            return None
        overload = self.find_overload()
        if overload is None:
            return None
        refusal = http_error(overload)
        self.note_request(_METHOD.decode(), _route_of(target).decode(), refusal.status)
        return refusal

    def refuse_raw(self, data: bytes, *, closes: bool) -> bytes | None:
        """The refusal, in bytes, of a request that has come in one piece.

        Args:
            data: What the client has sent since its last request.
            closes: Whether the connection is to be closed then, which the client is told.

        Returns:
            None if *data* is anything but one whole request of one length that says nothing of its connection, or may
            go on.
        """
        if self.find_overload() is None:
            return None
        head = _HEAD.match(data)
        length = _LENGTH.search(data, 0, head.end()) if head is not None else None
        if head is None or length is None or len(data) != head.end() + int(length[1]):
            return None
        if _NOT_PLAIN.search(data, 0, head.end()) or len(_ANY_LENGTH.findall(data, 0, head.end())) > 1:
            return None
        refusal = self.refuse(head[1], head[2])
        if refusal is None:
            return None
        sent_id = _SENT_ID.search(data, 0, head.end())
        headers = refusal_headers(refusal, sent_id[1] if sent_id else b"")
        if closes:
            headers.append((b"connection", b"close"))
        return render_answer(refusal.status, headers, refusal.body)


def _calls_model(method: bytes, target: bytes) -> bool:
    return method == _METHOD and _route_of(target) in _ROUTES


def _route_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def _nothing() -> None:
    """For what is not counted."""


def refusal_headers(refusal: HttpError, sent_id: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of a refusal whose request was sent with the ``x-request-id`` *sent_id*."""
    request_id = sent_id if _PLAIN_ID.fullmatch(sent_id) else f"req_{uuid4().hex}".encode()
    return [
        *((name.encode(), value.encode()) for name, value in refusal.headers()),
        (b"content-length", b"%d" % len(refusal.body)),
        (b"x-request-id", request_id),
    ]
