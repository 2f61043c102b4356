"""Server-sent events, both ways: bytes to frames and frames to bytes.

Rule 1: what comes out does not depend on how the bytes were split on the way.
Rule 2: any bytes can be decoded; the only error is an event that is too large.
Rule 3: the cap is per event, so one network read may hold any number of events.
Rule 4: a frame that we write is one event in one piece, its data one line.

``retry`` is ignored like any unknown field: nobody here reconnects by himself.

Source: WHATWG HTML Living Standard, "Server-sent events", sections 9.2.5 and 9.2.6.
"""

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.values import hot_value

KEEP_ALIVE = b": ping\n"
"""A comment with one newline on purpose: a blank line after an ``id:`` makes OpenAI SDKs raise on an empty event."""

DONE = b"data: [DONE]\n\n"
"""The last frame of a stream, as OpenAI ends it."""

_BOM = b"\xef\xbb\xbf"
_DATA_PREFIX = b"data: "
_BETWEEN_PLAIN = b"\n\n" + _DATA_PREFIX


def encode_frame(event: str | None, data: bytes, id: int | None = None) -> bytes:  # noqa: A002 - the field's own name
    """One frame, ready to be written in one piece.

    Args:
        event: The ``event`` field; without line breaks. None leaves it and the ``id`` out.
        data: The ``data`` field, UTF-8 without line breaks (``json.encode`` makes such).
        id: The ``id`` field; None leaves it out.
    """
    assert b"\n" not in data and b"\r" not in data, "data is one line"  # noqa: PT018 - one condition in two halves
    if event is None:
        return b"data: %b\n\n" % data
    if id is None:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (id, event.encode(), data)


@hot_value
class SseFrame:
    """One event as it was received."""

    event: str | None
    """The event's type; None when the stream does not name one (browsers then say ``message``)."""
    data: bytes
    """The data lines joined by LF, as received: not checked to be UTF-8."""
    id: str | None
    """The last ``id`` seen up to here in the stream, None when there was none or it was reset."""

    @property
    def text(self) -> str:
        """The data as text, with U+FFFD where it is not UTF-8."""
        return self.data.decode(errors="replace")


class SseEventTooLarge(UpstreamError):
    """An event, or a line of a comment, holds more bytes than allowed.

    Args:
        frames: The whole events that came before it in the same call, in order.
    """

    def __init__(self, frames: list[SseFrame]) -> None:
        super().__init__("The model's server sent an event that is too large.")
        self.frames = frames


class SseDecoder:
    """Frames out of a stream's bytes, as they arrive.

    Args:
        event_bytes_max: Bytes that one event may have: its lines without their ends. A line that is ignored, such as a
            comment, counts only while it is read.
    """

    def __init__(self, *, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._frames: list[SseFrame] = []
        self._is_too_large = False
        self._head: bytes | None = b""
        """The stream's first bytes, while they may still become a BOM; then None."""
        self._follows_cr = False
        self._line = bytearray()
        """The line that is not complete yet."""
        self._event: str | None = None
        self._id: str | None = None
        self._lines: list[bytes] = []
        self._event_bytes = 0
        """Bytes of the complete lines that make up the current event; 0 means between events."""

    def feed(self, data: bytes) -> list[SseFrame]:
        """The events that *data* completes, in order.

        Raises:
            SseEventTooLarge: Now, and in every later call.
        """
        if self._head is not None:
            data = self._strip_bom(data)
        if self._follows_cr and data:
            self._follows_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._follows_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return self._collect(data)

    def close(self) -> list[SseFrame]:
        """The event at the end of the stream that no blank line has ended, if there is one.

        The standard discards it. Upstreams do forget the last blank line, so here it counts;
        whoever reads it must expect that it was cut short.

        Raises:
            SseEventTooLarge: As in ``feed``.
        """
        head, self._head = self._head or b"", None
        return self._collect(head + b"\n\n")

    def _strip_bom(self, data: bytes) -> bytes:
        assert self._head is not None
        head = self._head + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _collect(self, data: bytes) -> list[SseFrame]:
        """Read *data*, in which LF is the only line end."""
        if self._is_too_large:
            raise SseEventTooLarge([])
        frames: list[SseFrame] = []
        self._frames = frames
        self._read(data)
        if self._is_too_large:
            self._line.clear()
            self._lines = []
            raise SseEventTooLarge(frames)
        return frames

    def _read(self, data: bytes) -> None:
        if self._line:
            start, newline, data = data.partition(b"\n")
            self._line += start
            if self._event_bytes + len(self._line) > self._event_bytes_max:
                self._is_too_large = True
            if not newline or self._is_too_large:
                return
            line = bytes(self._line)
            self._line.clear()
            self._read_line(line)
        data = self._read_plain(data)
        if not data:
            return
        *lines, start = data.split(b"\n")
        if self._read_lines(lines):
            self._line += start
            self._is_too_large = self._event_bytes + len(start) > self._event_bytes_max

    def _read_plain(self, data: bytes) -> bytes:
        """Read the whole events that *data* begins with if each is one line of data, as upstreams send them.

        Returns:
            What is left: usually nothing, and all of it where there is anything else among these events.
        """
        end = data.rfind(b"\n\n") + len(b"\n\n")
        if data.startswith(_DATA_PREFIX) and not self._event_bytes and end <= self._event_bytes_max:
            payloads = data[len(_DATA_PREFIX) : end - len(b"\n\n")].split(_BETWEEN_PLAIN)
            if data.count(b"\n", 0, end) == len(payloads) * len(b"\n\n"):  # there is no line end within them
                last_id = self._id
                self._frames += [SseFrame(None, payload, last_id) for payload in payloads]
                return data[end:]
        return data

    def _read_lines(self, lines: list[bytes]) -> bool:
        """Read complete lines; False as soon as the event is too large."""
        for line in lines:
            if self._event_bytes + len(line) > self._event_bytes_max:
                self._is_too_large = True
                return False
            self._read_line(line)
        return True

    def _read_line(self, line: bytes) -> None:
        if not line:
            self._dispatch()
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._lines.append(value)
        elif field == b"event":
            self._event = value.decode(errors="replace") or None
        elif field == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace") or None
        else:
            return  # a comment, ``retry`` or a field that nobody knows
        self._event_bytes += len(line)

    def _dispatch(self) -> None:
        """A blank line: the event is complete; without a data line it is nothing."""
        if self._lines:
            data = self._lines[0] if len(self._lines) == 1 else b"\n".join(self._lines)
            self._frames.append(SseFrame(self._event, data, self._id))
            self._lines = []
        self._event = None
        self._event_bytes = 0
