"""What a tool answered, as text for the model.

Rule 1: an output is text: in the charset that the answer names, or UTF-8.
Rule 2: of an error that the call caused (4xx) the model is told a bounded part of the text, for it may mend its call;
of one that the tool caused (5xx), or that concerns its credentials, nothing: that is its operator's business.
"""

from collections.abc import AsyncIterator, Sequence

import httpx

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.protocol.json import clean_text

_CHARSETS = {
    "utf-8": "utf-8-sig",
    "utf8": "utf-8-sig",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "iso-8859-1",
    "latin1": "iso-8859-1",
    "windows-1252": "cp1252",
    "utf-16": "utf-16",
}
"""Those that tools use; others are refused, for Python has some that are no charsets."""
_ERROR_CHARACTERS_MAX = 1000
"""Of an error's text: enough for what a validator says, too little to fill the model's context."""
_ERROR_BYTES_MAX = 4 * _ERROR_CHARACTERS_MAX
_SECRET_CHARACTERS_MIN = 7
"""Shorter parts of a header, such as the name of a scheme, are no secrets."""
_OF_THE_CALL = range(400, 500)
_OF_THE_CREDENTIALS = frozenset({401, 403, 407})


async def read_output(response: httpx.Response, *, bytes_max: int) -> str:
    """The whole body as text.

    Raises:
        ToolFailed: It is longer than *bytes_max*, or not text.
        httpx.TransportError: It broke.
    """
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _failed("The tool's answer is compressed, which it was asked not to be.")
    charset = _CHARSETS.get(_charset_of(response))
    if charset is None:
        raise _failed("The tool's answer is in a charset that is not known here; UTF-8 always is.")
    body = bytearray()
    async for piece in _pieces(response):
        body += piece
        if len(body) > bytes_max:
            raise _failed(f"The tool's answer is too long: at most {bytes_max} bytes are allowed.")
    try:
        return clean_text(body.decode(charset))
    except UnicodeDecodeError:
        raise _failed("The tool's answer is not text.") from None


async def explain_status(response: httpx.Response, *, secrets: Sequence[str]) -> str:
    """A sentence on an answer that is no success.

    Args:
        response: Its body is read as far as it is told.
        secrets: Values of headers; a text that repeats one is not told.

    Raises:
        httpx.TransportError: It broke.
    """
    status = response.status_code
    told = f"The tool answered with an error (status {status})."
    if status not in _OF_THE_CALL or status in _OF_THE_CREDENTIALS or not _is_for_reading(response):
        return told
    body = bytearray()
    async for piece in _pieces(response):
        body += piece
        if len(body) > _ERROR_BYTES_MAX:
            break
    text = " ".join(clean_text(body.decode(errors="replace")).split())
    parts = [part for secret in secrets for part in secret.split() if len(part) >= _SECRET_CHARACTERS_MIN]
    if not text or any(part in text for part in parts):
        return told
    is_cut = len(text) > _ERROR_CHARACTERS_MAX
    return f"{told.removesuffix('.')}: {text[:_ERROR_CHARACTERS_MAX]}{'…' if is_cut else ''}"


def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it arrives; httpx's own iterator is a generator, which an early end leaves to the collector."""
    assert isinstance(response.stream, httpx.AsyncByteStream), "tools are called asynchronously"
    return aiter(response.stream)


def _is_for_reading(response: httpx.Response) -> bool:
    """Whether the body is meant for programs or as plain text; pages for browsers tell a model nothing."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_readable = response.headers.get("content-encoding", "identity").lower() == "identity"
    return is_readable and (media_type in {"application/json", "text/plain"} or media_type.endswith("+json"))


def _charset_of(response: httpx.Response) -> str:
    content_type: str = response.headers.get("content-type", "")
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return "utf-8"


def _failed(message: str) -> ToolFailed:
    return ToolFailed(ErrorType.EXECUTOR_ERROR, message)
