"""The scenarios of the Open Responses specification's own compliance page, and some more, against its types."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.wire.open_responses import check_event, check_response

from dwctl_trio.testing.service import Service, open_service

IMAGE = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place now.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object", "properties": {}}}


def _user(content: object) -> dict[str, object]:
    return {"type": "message", "role": "user", "content": content}


SCENARIOS: dict[str, tuple[dict[str, Any], str, str]] = {
    "basic text": ({"model": "echo-3", "input": [_user("Say hello.")]}, "completed", "message"),
    "system prompt": (
        {"model": "echo-3", "input": [{"type": "message", "role": "system", "content": "Be brief."}, _user("Hi.")]},
        "completed",
        "message",
    ),
    "tool calling": (
        {"model": "tools-1", "input": [_user("What is the weather?")], "tools": [WEATHER]},
        "completed",
        "function_call",
    ),
    "image input": (
        {
            "model": "echo-3",
            "input": [
                _user([{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": IMAGE}])
            ],
        },
        "completed",
        "message",
    ),
    "multi-turn": (
        {
            "model": "echo-3",
            "input": [
                _user("I am Alice."),
                {"type": "message", "role": "assistant", "content": "Hello Alice."},
                _user("Who am I?"),
            ],
        },
        "completed",
        "message",
    ),
    "structured output": (
        {"model": "echo-3", "input": [_user("Answer.")], "text": {"format": SCHEMA}},
        "completed",
        "message",
    ),
    "reasoning": ({"model": "reasoning-2-3", "input": [_user("Think.")]}, "completed", "reasoning"),
    "refusal": ({"model": "refusal-2", "input": [_user("Do it.")]}, "completed", "message"),
    "too long": ({"model": "echo-3-length", "input": [_user("Go on.")]}, "incomplete", "message"),
    "failure": ({"model": "echo-3-cut", "input": [_user("Break.")]}, "failed", "message"),
}


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


def _read(stream: str) -> list[dict[str, Any]]:
    """The events of *stream*, each of which says its type twice, and which ends as the specification demands."""
    *frames, last, rest = stream.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    events = []
    for frame in frames:
        numbered, named, data = frame.split("\n")  # the number, beyond the specification, serves Last-Event-ID
        events.append(msgspec.json.decode(data.removeprefix("data: ")))
        assert (numbered, named) == (f"id: {events[-1]['sequence_number']}", f"event: {events[-1]['type']}")
    return events


async def test_every_answer_and_event_is_what_the_specification_demands(service: Service) -> None:
    seen = Counter[str]()
    for name, (body, status, item_type) in SCENARIOS.items():
        answer = await service.client.post("/v1/responses", json=body | {"store": False})
        assert answer.status_code == 200, (name, answer.text)
        assert answer.headers["content-type"] == "application/json"
        response = check_response(answer.json())
        assert response.status == status, name
        assert item_type in {item["type"] for item in answer.json()["output"]}, name

        streamed = await service.client.post("/v1/responses", json=body | {"stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        events = _read(streamed.text)
        for event in events:
            check_event(event)
            seen[event["type"]] += 1
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == f"response.{status}", name
    print(f"{len(SCENARIOS)} scenarios, {seen.total()} events of {len(seen)} types: all as the specification demands")
    assert len(seen) >= 15
