"""What the tests with the official OpenAI SDK share: a client in a thread, and what the SDK's types demand."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pydantic
import trio

from dwctl_trio.testing.service import Service

SDK_S = 20.0
"""Bound of the SDK's own waits."""

NAMED_EXTRAS = {
    "Response": {"presence_penalty", "frequency_penalty", "store"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "ResponseCustomToolCall": {"status"},
}
"""Fields that the SDK's types do not know, by type: of Open Responses, or missing in the SDK."""


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


def _extras(value: object) -> Iterator[tuple[str, str]]:
    """Every field in *value*, at any depth, that its type does not have: the type's name and the field's."""
    if isinstance(value, pydantic.BaseModel):
        for name in value.model_extra or {}:
            yield type(value).__name__, name
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _extras(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _extras(item)


def assert_typed(value: pydantic.BaseModel) -> None:
    """*value* has all that its type demands, and beyond it only what is on the list."""
    type(value).model_validate(value.to_dict())
    unnamed = {(kind, name) for kind, name in _extras(value) if name not in NAMED_EXTRAS.get(kind, ())}
    assert not unnamed, unnamed
