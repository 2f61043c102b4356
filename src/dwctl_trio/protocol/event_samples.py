"""One event of every type that a stream can have, for whoever lists them: the reference pages, the OpenAPI document.

Rule: the events are asked of ``domain/events.py``; a new one is here as soon as it is there.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args
from uuid import UUID

import attrs

from dwctl_trio.domain import events
from dwctl_trio.domain.items import ItemStatus, Message, TextPart
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Response, ResponseStatus

SAMPLE_RESPONSE = Response(
    id=UUID(int=0), created_at=0, request=ResponseRequest(model="…", input=()), status=ResponseStatus.COMPLETED
)
"""As small as a response can be."""
_ITEM = Message(id="msg_1", status=ItemStatus.COMPLETED)
_VALUES: Mapping[str, Any] = {
    "response": SAMPLE_RESPONSE,
    "output_index": 0,
    "content_index": 0,
    "summary_index": 0,
    "annotation_index": 0,
    "annotation": b"{}",
    "item_id": "msg_1",
    "item": _ITEM,
    "part": TextPart(text=""),
    "event": events.OutputItemAdded(0, _ITEM),
}


def sample_events() -> Iterator[events.Event]:
    """One event of every kind and variant, in the order of their definition."""
    for kind in get_args(events.Event):
        fields = attrs.fields_dict(kind)
        needed = [name for name, field in fields.items() if field.default is attrs.NOTHING or name in _VALUES]
        for variant in fields["kind"].type or () if "kind" in fields else (None,):
            yield kind(**{name: variant if name == "kind" else _VALUES.get(name, "…") for name in needed})
