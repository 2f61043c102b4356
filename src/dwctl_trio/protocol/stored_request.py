"""Requests as rows keep them, which another release of the server may have written.

Rule: one that cannot be read is nobody's fault, and stops nothing but its own response.
"""

import attrs
import msgspec

from dwctl_trio.domain.request import InputItem, ResponseRequest
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.protocol.fields import Fields
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.request_input import parse_input
from dwctl_trio.protocol.request_tools import parse_tools


@attrs.frozen
class StoredRequest:
    """What was asked."""

    request: ResponseRequest
    tools: tuple[OfferedTool, ...]
    """What the model is offered."""


def read_request(request: bytes | str, tools: bytes | str | None) -> StoredRequest | None:
    """What a row says was asked; None if this release cannot read it."""
    try:
        offered = () if tools is None else parse_tools(msgspec.json.decode(tools))
        return StoredRequest(parse_request(msgspec.json.decode(request)), offered)
    except Exception:  # noqa: BLE001 - supervision boundary: one stored request, which must not keep others from being read
        return None


def read_input(request: bytes | str) -> tuple[InputItem, ...] | None:
    """The input of what a row says was asked; None if this release cannot read it."""
    try:
        return parse_input(Fields(msgspec.json.decode(request), ""), may_be_empty=True)
    except Exception:  # noqa: BLE001 - supervision boundary: one stored input, as in read_request
        return None
