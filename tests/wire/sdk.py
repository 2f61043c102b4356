"""What the tests with the official OpenAI SDK share: a client in a thread, and what the SDK's types demand."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import httpx
import openai
import pydantic
import trio
from openai.types.responses import ResponseStreamEvent

from dwctl_trio.protocol.extras import EXTRA_EVENTS, EXTRA_FIELDS
from dwctl_trio.testing.service import Service

SDK_S = 20.0
"""Bound of the SDK's own waits."""

_EVENT_TYPES: dict[str, type[pydantic.BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}


async def use(service: Service, work: Callable[[openai.OpenAI], Any], *, api_key: str = "unused") -> Any:
    """Do *work* with a client of the SDK, in a thread, as its users do."""

    def run() -> Any:
        http = httpx.Client(trust_env=False)
        with openai.OpenAI(
            base_url=f"{service.url}/v1", api_key=api_key, max_retries=0, timeout=SDK_S, http_client=http
        ) as client:
            return work(client)

    with trio.fail_after(SDK_S):
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


def check_event(data: Mapping[str, Any]) -> None:
    """*data*, those of an event as they came, have all that the SDK's type demands, and no more than is on the list.

    A sub-agent's event, which the SDK does not know, is taken for the event that it holds.
    """
    if data["type"] in EXTRA_EVENTS:
        data = {**data["event"], "sequence_number": data["sequence_number"]}
    assert_named_extras(_EVENT_TYPES[data["type"]].model_validate(data, strict=True))


def _extras(value: object) -> Iterator[tuple[str, str]]:
    """Every field in *value*, at any depth, that its type does not have: what *value* is, and the field's name."""
    if isinstance(value, pydantic.BaseModel):
        kind = getattr(value, "object", None) or getattr(value, "type", None) or type(value).__name__
        for name in value.model_extra or {}:
            yield kind, name
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _extras(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _extras(item)


def assert_named_extras(value: pydantic.BaseModel) -> None:
    """*value* has nothing beyond its type but what is on the list."""
    unnamed = {(kind, name) for kind, name in _extras(value) if name not in EXTRA_FIELDS.get(kind, ())}
    assert not unnamed, unnamed


def assert_typed(value: pydantic.BaseModel) -> None:
    """*value* has all that its type demands, and beyond it only what is on the list."""
    type(value).model_validate(value.to_dict())
    assert_named_extras(value)
