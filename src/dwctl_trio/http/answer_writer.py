"""A Quart answer to bytes on a connection: the head, the framing of the body, and the body itself.

Rule 1: an answer that is at hand goes out in one write, head and all.
Rule 2: a body of unknown length is chunked; for a client of HTTP/1.0 the end of its connection is the end of the body.
Rule 3: an answer that is not complete is never ended: its connection breaks.

Source: RFC 9112, sections 6 and 7.
"""

from collections.abc import AsyncIterable, Iterable

import trio
from quart.wrappers.response import DataBody, Response, ResponseBody
from werkzeug.wrappers import Response as WerkzeugResponse

from dwctl_trio.http.event_body import EventBody
from dwctl_trio.http.refusals import http_date, status_line
from dwctl_trio.http.request_reader import RequestHead
from dwctl_trio.http.writing import ClientWriter

_LAST_CHUNK = b"0\r\n\r\n"
_BODILESS = frozenset({204, 304})


class AnswerWriter:
    """Writes the answer to one request.

    Args:
        client: Who gets it.
        request: What is answered.
    """

    def __init__(self, client: ClientWriter, request: RequestHead) -> None:
        self._client = client
        self._request = request
        self.keeps = False
        """Whether the connection may be used again; the head says so."""
        self.has_begun = False
        """Whether anything was written."""
        self.is_complete = False
        """Whether all was written."""
        self._head = b""
        """Not written yet."""
        self._is_chunked = False
        self._has_body = True
        self._owed: int | None = None
        """Bytes of the body that were announced and are not written; None where none were."""

    async def send(self, answer: Response | WerkzeugResponse) -> None:
        """Write *answer*.

        Raises:
            ClientGoneError: The client did not take it.

        Cancellation:
            A frame is not cut, and the answer is not complete.
        """
        self._make_head(answer.status_code, answer.headers)
        body = answer.response
        if isinstance(answer, WerkzeugResponse):
            await self._end(answer.get_data())
        elif type(body) is DataBody:
            await self._end(bytes(body.data[body.begin : body.end]))
        else:
            assert isinstance(body, ResponseBody), "all bodies of Quart's are"
            async with body as opened:
                await self._stream(opened)

    async def _stream(self, body: object) -> None:
        if isinstance(body, EventBody):
            await self._end(await body.pour(self._write_now, self._client.write))
            return
        assert isinstance(body, AsyncIterable), "all bodies of Quart's are"
        await self._client.write(self._frame(b""))
        async for data in body:
            await self._client.write(self._frame(data.encode() if isinstance(data, str) else data))
            await trio.lowlevel.checkpoint()
        await self._end(b"")

    def _write_now(self, data: bytes) -> bytes:
        return self._client.write_now(self._frame(data))

    async def _end(self, data: bytes) -> None:
        """Write the last bytes of the body."""
        await self._client.write(self._frame(data) + (_LAST_CHUNK if self._is_chunked else b""))
        self.is_complete = self._owed in {0, None}

    def _frame(self, data: bytes) -> bytes:
        """*data* as it goes over the wire, behind the head if that was not written yet."""
        head, self._head, self.has_begun = self._head, b"", True
        if not self._has_body or not data:
            return head
        if self._is_chunked:
            return b"%s%x\r\n%s\r\n" % (head, len(data), data)
        if self._owed is not None:
            data = data[: self._owed]
            self._owed -= len(data)
        return head + data

    def _make_head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        lines, length = [status_line(status)], None
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                length = int(value)
            elif lower == "connection":
                self.keeps = self.keeps and "close" not in value.lower()
                continue
            lines.append(f"{lower}: {value}")
        may_have_body = status not in _BODILESS
        self._has_body = may_have_body and self._request.method != b"HEAD"
        if length is None and may_have_body:
            if self._request.version < b"1.1":
                self.keeps = False
            else:
                lines.append("transfer-encoding: chunked")
                self._is_chunked = self._has_body
        elif self._has_body:
            self._owed = length
        lines.append(f"date: {http_date()}")
        if not self.keeps:
            lines.append("connection: close")
        self._head = "\r\n".join([*lines, "", ""]).encode()
