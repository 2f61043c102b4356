"""What the tests of queued responses share."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import trio
from tests.http.conftest import WAIT_S

from dwctl_trio.testing.service import Service

QUICK = {
    "queue_poll_s": 0.05, "follow_poll_s": 0.05, "lease_watch_s": 0.05, "queue_retry_s": 0.05,
    "segment_interval_s": 0.01,
}  # fmt: skip
"""What a lost hint would have told is found at once."""
NO_WORKERS = QUICK | {"queue_workers": 0}
"""The queue is only filled."""
BACKGROUND: dict[str, Any] = {"background": True}
FLEX: dict[str, Any] = {"service_tier": "flex"}
DONE = b"data: [DONE]\n\n"


async def post(service: Service, body: dict[str, Any], **headers: str) -> httpx.Response:
    """The answer to a POST with *body*."""
    with trio.fail_after(WAIT_S):
        return await service.client.post("/v1/responses", json=body, headers=headers)


async def get(service: Service, response_id: str, query: str = "", **headers: str) -> httpx.Response:
    """The answer to a GET of the response, or of its events."""
    with trio.fail_after(WAIT_S):
        return await service.client.get(f"/v1/responses/{response_id}{query}", headers=headers)


async def cancel(service: Service, response_id: str) -> httpx.Response:
    """The answer to cancelling the response."""
    with trio.fail_after(WAIT_S):
        return await service.client.post(f"/v1/responses/{response_id}/cancel")


async def wait_ended(service: Service, response_id: str) -> dict[str, Any]:
    """What GET says once the response has ended."""
    with trio.fail_after(WAIT_S):
        while True:
            shown: dict[str, Any] = (await get(service, response_id)).json()
            if shown["status"] not in {"queued", "in_progress"}:
                return shown


async def wait_followers(service: Service, count: int) -> None:
    """Return when *count* followers read."""
    with trio.fail_after(WAIT_S):
        while f"dwctl_followers {count}.0" not in (await service.client.get("/metrics")).text:
            await trio.lowlevel.checkpoint()


def frames_of(body: bytes) -> list[bytes]:
    """The frames of a whole stream, ``[DONE]`` included."""
    *frames, rest = body.replace(b": ping\n", b"").split(b"\n\n")
    assert not rest, rest
    return [frame + b"\n\n" for frame in frames]


def data_of(answer: httpx.Response) -> Iterator[Any]:
    """The data of all events of a stream."""
    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def last_response(answer: httpx.Response) -> Any:
    """The response of the last event."""
    return [*data_of(answer)][-1]["response"]
