"""The official OpenAI SDK and responses that outlive their connection: background, flex, follow, resume, cancel."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from tests.http.database_gate import QUICK as GATED
from tests.http.database_gate import open_gated
from tests.http.queued import QUICK
from tests.wire.sdk import assert_typed, use

from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.simulator_script import expected_text

POLLS_MAX = 1000


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn, {"limits": QUICK}) as service:
        yield service


def poll(client: openai.OpenAI, response: Response) -> Response:
    """*response* once it has ended, as OpenAI's guide says it."""
    for _ in range(POLLS_MAX):
        if response.status not in {"queued", "in_progress"}:
            return response
        response = client.responses.retrieve(response.id)
    raise AssertionError(f"it is still {response.status}")


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


@pytest.mark.slow
async def test_a_background_response_is_polled_to_its_end(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[Response, Response]:
        created = client.responses.create(model="echo-5", input="hello", background=True)
        return created, poll(client, created)

    created, ended = await use(service, work)

    assert_typed(created)
    assert_typed(ended)
    assert (created.status, created.background, created.output) == ("queued", True, [])
    assert (ended.status, ended.output_text, ended.id) == ("completed", expected_text("echo-5"), created.id)


@pytest.mark.slow
async def test_a_background_stream_that_is_cut_anywhere_is_resumed_from_there(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[list[list[Any]], list[Any]]:
        resumed = []
        for count in (1, 2, 3, 7, 12):
            stream = client.responses.create(model="echo-9-each", input="hello", background=True, stream=True)
            seen = list(islice(stream, count))
            response_id = seen[0].response.id
            stream.close()
            rest = list(client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number))
            whole = list(client.responses.retrieve(response_id, stream=True))
            assert [event.to_dict() for event in (*seen, *rest)] == [event.to_dict() for event in whole]
            resumed.append(whole)
        return resumed, list(client.responses.create(model="echo-9-each", input="hello", stream=True))

    resumed, warm = await use(service, work)

    for events in resumed:
        for event in events:
            assert_typed(event)
        assert numbers(events) == list(range(len(events)))
        assert [event.type for event in events[:3]] == [
            *("response.created", "response.queued", "response.in_progress"),
        ]
        assert [event.type for event in events[3:]] == [event.type for event in warm[2:]]
        assert events[-1].response.output_text == expected_text("echo-9")


@pytest.mark.slow
async def test_the_accumulating_helper_goes_on_with_a_response_by_its_id(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[list[Any], Response, Response]:
        with client.responses.stream(model="echo-9-each", input="hello", background=True) as stream:
            seen = list(islice(stream, 6))
        response_id = seen[0].response.id
        with client.responses.stream(response_id=response_id, starting_after=seen[-1].sequence_number) as stream:
            rest = list(stream)
            final = stream.get_final_response()
        return [*seen, *rest], final, client.responses.retrieve(response_id)

    events, final, retrieved = await use(service, work)

    assert numbers(events) == list(range(len(events)))
    assert final.output_text == retrieved.output_text == expected_text("echo-9")
    assert final.model_dump(exclude={"output"}) == retrieved.model_dump(exclude={"output"})


@pytest.mark.slow
async def test_a_background_response_is_cancelled(service: Service) -> None:
    def work(client: openai.OpenAI) -> tuple[list[Any], Response, Response]:
        stream = client.responses.create(model="pause-3-9", input="hello key:c", background=True, stream=True)
        seen = list(_until_deltas(stream, 3))
        cancelled = client.responses.cancel(seen[0].response.id)
        return [*seen, *stream], cancelled, client.responses.cancel(cancelled.id)

    events, cancelled, again = await use(service, work)

    await service.simulator.wait_aborted("c")
    assert_typed(cancelled)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", expected_text("echo-3"))
    assert again.model_dump() == cancelled.model_dump()
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    assert events[-1].response.model_dump() == cancelled.model_dump()


def _until_deltas(stream: Iterator[Any], count: int) -> Iterator[Any]:
    """The events of *stream* up to the last of *count* deltas."""
    for event in stream:
        yield event
        count -= event.type == "response.output_text.delta"
        if count == 0:
            return


@pytest.mark.slow
@pytest.mark.parametrize("store", [True, False], ids=["stored", "unstored"])
async def test_flex_is_waited_for_or_streamed(service: Service, store: bool) -> None:
    asked: dict[str, Any] = {"model": "echo-5-each", "input": "hello", "service_tier": "flex", "store": store}

    def work(client: openai.OpenAI) -> tuple[Response, list[Any]]:
        return client.responses.create(**asked), list(client.responses.create(**asked, stream=True))

    waited, events = await use(service, work)

    assert_typed(waited)
    assert (waited.status, waited.service_tier) == ("completed", "flex")
    assert waited.output_text == events[-1].response.output_text == expected_text("echo-5")
    assert numbers(events) == list(range(len(events)))
    assert events[1].type == "response.queued"


@pytest.mark.slow
async def test_a_stream_that_the_server_cuts_is_an_error_and_is_resumed(postgres_dsn: str) -> None:
    limits = GATED | QUICK | {"follow_patience_s": 0.2}
    async with open_gated(postgres_dsn, limits) as (service, gate):
        fields: dict[str, Any] = {"background": True, "stream": True}

        def begin(client: openai.OpenAI) -> tuple[Any, list[Any]]:
            stream = client.responses.create(model="pause-3-9-each", input="hello key:cut", **fields)
            return stream, list(_until_deltas(stream, 3))

        def read_on(_client: openai.OpenAI) -> str:
            with pytest.raises(openai.APIConnectionError) as caught:
                list(stream)
            return type(caught.value).__name__

        stream, seen = await use(service, begin)
        await gate.cut()
        raised = await use(service, read_on)
        gate.restore()
        service.simulator.resume("cut")
        response_id, last = seen[0].response.id, seen[-1].sequence_number
        rest = await use(
            service, lambda client: list(client.responses.retrieve(response_id, stream=True, starting_after=last))
        )

    assert numbers([*seen, *rest]) == list(range(len(seen) + len(rest)))
    assert rest[-1].response.output_text == expected_text("echo-9")
    print(f"the SDK raises {raised} after {len(seen)} events, and gets the other {len(rest)} by starting_after")


@pytest.mark.slow
async def test_what_cannot_be_streamed_is_an_error_that_says_why(service: Service) -> None:
    def work(client: openai.OpenAI) -> list[tuple[str | None, str | None]]:
        created = client.responses.create(model="echo-2", input="hello")
        found = []
        for after in (10_000, -1):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.retrieve(created.id, stream=True, starting_after=after)
            found.append((caught.value.param, caught.value.code))
        return found

    assert await use(service, work) == [("starting_after", "invalid_value")] * 2
