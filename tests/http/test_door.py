"""The door: an overloaded process answers new work before it is parsed, and lets everything else in."""

import json
import re
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from tests.http.conftest import WAIT_S, ask, open_raw, read_answer

from dwctl_trio.domain.errors import Overloaded
from dwctl_trio.http.door import Door
from dwctl_trio.testing.service import Service, open_service

BODY = json.dumps(ask("echo-2")).encode()
HEAD = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nX-Request-Id: mine\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
COUNT = "/v1/responses/input_tokens"
CLOSED = {"limits": {"live_responses": 1}, "upstreams": {"simulator": {"max_concurrency": 1}}}
HELD = {"model": "pause-1-2", "input": "hello", "stream": True}


@attrs.define
class Notes:
    told: list[tuple[str, str, int]] = attrs.Factory(list)
    inside: int = 0

    def note(self, *told: object) -> None:
        self.told.append(told)

    def enter(self) -> Callable[[], None]:
        self.inside += 1

        def leave() -> None:
            self.inside -= 1

        return leave


def make_door(*, closed: bool) -> tuple[Door, Notes]:
    notes = Notes()
    overload = Overloaded("too much", retry_after_s=1.5) if closed else None
    return Door(find_overload=lambda: overload, note_request=notes.note, enter=notes.enter), notes


def test_an_open_door_refuses_nobody() -> None:
    door, notes = make_door(closed=False)

    assert door.refuse_raw(WHOLE, closes=True) is None
    assert door.refuse(b"POST", b"/v1/responses") is None
    assert notes.told == []


def test_a_refusal_is_a_whole_answer_that_says_when_to_try_again() -> None:
    door, notes = make_door(closed=True)

    answers = [door.refuse_raw(WHOLE, closes=closes) for closes in (True, False)]

    for answer, is_closing in zip(answers, (True, False), strict=True):
        assert answer is not None
        read = read_answer(answer)
        assert (read.status_code, read.headers["retry-after-ms"], read.headers["retry-after"]) == (503, "1500", "2")
        assert read.headers["x-request-id"] == "mine"
        assert read.json()["error"].keys() == {"message", "type", "param", "code"}
        assert (read.headers.get("connection") == "close") is is_closing
    assert notes.told == [("POST", "/v1/responses", 503)] * 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", COUNT])
def test_every_other_call_of_a_model_is_refused_as_well(path: str) -> None:
    door, notes = make_door(closed=True)

    answer = door.refuse_raw(WHOLE.replace(b"/v1/responses", path.encode()), closes=True)

    assert answer is not None
    assert read_answer(answer).status_code == 503
    assert notes.told == [("POST", path, 503)]


def test_only_what_begins_a_response_counts_as_inside() -> None:
    door, notes = make_door(closed=False)

    leave = [door.let_in(*request) for request in ((b"POST", b"/v1/responses?a=b"), (b"GET", b"/v1/responses"))]
    counted = notes.inside
    for end in leave:
        end()

    assert (counted, notes.inside) == (1, 0)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-1],
        WHOLE + b"x",
        HEAD,
        CHUNKED,
        WHOLE.replace(b"POST", b"GET"),
        WHOLE.replace(b"/v1/responses", b"/v1/responses/x"),
        WHOLE.replace(b"/v1/responses", b"/healthz"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/2.0"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"Host: t", b"Host: t\r\nConnection: close"),
        WHOLE.replace(b"Host: t", b"Host: t\r\nTransfer-Encoding: chunked"),
        WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
        WHOLE.replace(b"Host: t", b"Host: \0"),
        WHOLE.replace(b"Content-Length: ", b"Content-Length: " + b"9" * 5000),
        b"",
    ],
)
def test_what_is_not_one_whole_request_for_a_response_goes_the_ordinary_way(data: bytes) -> None:
    door, notes = make_door(closed=True)

    assert door.refuse_raw(data, closes=True) is None
    assert notes.told == []


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
@example(b"\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", len(HEAD) - 2)
def test_no_bytes_whatsoever_make_it_fail(more: bytes, cut: int) -> None:
    door, _ = make_door(closed=True)

    answer = door.refuse_raw(WHOLE[:cut] + more, closes=True)

    assert answer is None or answer.startswith(b"HTTP/1.1 503 ")


async def _hold(service: Service, *, task_status: trio.TaskStatus[None]) -> None:
    async with service.client.stream("POST", "/v1/responses", json=HELD) as answer:
        assert answer.status_code == 200
        task_status.started()
        await answer.aread()


@pytest.mark.usefixtures("each_server_at_length")
async def test_a_kept_connection_survives_its_refusals_however_they_arrive(postgres_dsn: str) -> None:
    closing = WHOLE.replace(b"Host: t", b"Host: t\r\nConnection: close")
    async with open_service(postgres_dsn, CLOSED) as service, trio.open_nursery() as nursery:
        await nursery.start(_hold, service)
        async with open_raw(service) as client:
            with trio.fail_after(WAIT_S):
                answer = await client.exchange(WHOLE + WHOLE + b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n" + closing)
        async with open_raw(service) as client:
            with trio.fail_after(WAIT_S):
                chunked = read_answer(await client.exchange(CHUNKED))
        page = (await service.client.get("/metrics")).text
        nursery.cancel_scope.cancel()

    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert statuses == [b"503", b"503", b"200", b"503"]
    assert answer.count(b"x-request-id: mine") == 3
    assert (chunked.status_code, chunked.headers["connection"]) == (503, "close")
    (counted,) = [line for line in page.splitlines() if 'route="/v1/responses"' in line and '"5xx"' in line]
    assert counted.endswith(" 4.0")
