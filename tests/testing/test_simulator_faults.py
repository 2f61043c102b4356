"""How the simulator fails, pauses, notices its clients and counts, over real sockets."""

from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from dwctl_trio.testing.simulator import open_simulator
from dwctl_trio.testing.simulator_reply import CANARY
from dwctl_trio.testing.simulator_script import expected_text


@asynccontextmanager
async def served():
    async with open_simulator() as simulator, httpx.AsyncClient(base_url=simulator.base_url, timeout=5) as client:
        with trio.fail_after(10):
            yield simulator, client


def body(model, prompt="hello", *, stream=True):
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}


async def read(client, model, *, stream=True):
    """What came before the end, and the error that was the end, if it was one."""
    received = b""
    async with client.stream("POST", "/chat/completions", json=body(model, stream=stream)) as response:
        try:
            async for piece in response.aiter_raw():
                received += piece
        except httpx.TransportError as error:
            return received, error
    return received, None


async def leave_when(simulator, client, asked, predicate):
    """Ask, and abandon the request once the counts fulfil the predicate."""
    async with trio.open_nursery() as nursery:

        async def ask():
            await client.post("/chat/completions", json=asked)

        nursery.start_soon(ask)
        await simulator.wait_until(predicate)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_an_error_status_has_a_providers_json_with_a_canary(status, stream):
    async with served() as (simulator, client):
        response = await client.post("/chat/completions", json=body(f"error-{status}", stream=stream))
        assert (await simulator.wait_idle()).failed == 1
    assert response.status_code == status
    assert CANARY in response.json()["error"]["message"]
    assert "retry-after" not in response.headers


async def test_an_error_can_say_when_to_try_again():
    async with served() as (_, client):
        response = await client.post("/chat/completions", json=body("error-429-5"))
    assert (response.status_code, response.headers["retry-after"]) == (429, "5")


async def test_an_answer_can_be_html_or_nothing_at_all():
    async with served() as (_, client):
        html = await client.post("/chat/completions", json=body("html-502"))
        empty = await client.post("/chat/completions", json=body("empty-200"))
    assert (html.status_code, html.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert (empty.status_code, empty.content) == (200, b"")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "error"), [("cut-2", httpx.RemoteProtocolError), ("reset-2", httpx.ReadError), ("cutbyte-40-9", None)]
)
async def test_a_connection_can_end_within_the_body(model, error, stream):
    async with served() as (simulator, client):
        received, raised = await read(client, model, stream=stream)
        assert (await simulator.wait_until(lambda counts: counts.connections == 0)).failed == 1
    assert isinstance(raised, error or httpx.RemoteProtocolError)
    assert (len(received) == 40) is (error is None)


async def test_a_cut_stream_has_its_tokens_and_no_finish():
    async with served() as (simulator, client):
        received, _ = await read(client, "cut-2")
        assert (await simulator.wait_idle()).tokens_sent == 2
    assert received.count(b'"content":"word') == 2
    assert b'"finish_reason":"stop"' not in received


@pytest.mark.parametrize(
    ("model", "last"),
    [
        ("eof-2", b'"content":"word1 "},"finish_reason":null}]}'),
        ("midstream-2", CANARY.encode()),
        ("garbage-2", b'"delta":{"content":"wo\n\n'),
        ("badutf8-2", b"\xff\xfe\xc3"),
        ("binary-2", b"\xfd\xfe\xff\x00\n\n"),
    ],
)
async def test_a_body_can_end_cleanly_and_yet_be_spoiled(model, last):
    async with served() as (simulator, client):
        received, raised = await read(client, model)
        plain, plain_raised = await read(client, model, stream=False)
        assert (await simulator.wait_idle()).failed == 2
    assert (raised, plain_raised) == (None, None)
    assert received.count(b'"content":"word') == 2
    assert last in received
    assert b"[DONE]" not in received
    assert plain


async def test_the_first_requests_can_fail_and_later_ones_succeed():
    async with served() as (_, client):
        answers = [await client.post("/chat/completions", json=body("flaky-2-1")) for _ in range(3)]
        other = await client.post("/chat/completions", json=body("flaky-2-1", "key:other"))
    assert [answer.status_code for answer in answers] == [500, 500, 200]
    assert other.status_code == 500


async def test_a_pause_lasts_until_its_key_is_resumed():
    async with served() as (simulator, client):
        request = client.stream("POST", "/chat/completions", json=body("pause-2-4", "go key:a"))
        async with request as response:
            pieces = response.aiter_text()
            first = await anext(pieces)
            assert (await simulator.wait_until(lambda counts: counts.paused == 1)).tokens_sent == 2
            assert (simulator.resume("b"), simulator.resume("a")) == (0, 1)
            rest = "".join([piece async for piece in pieces])
        assert (await simulator.wait_idle()).paused == 0
        assert simulator.resume_all() == 0
    assert ("word1" in first, "word2" in first, "word3" in rest) == (True, False, True)


@pytest.mark.parametrize("model", ["pause-0-2", "gate-2", "error-500-gate", "json-2-pause-1"])
async def test_a_resume_counts_even_before_the_pause_is_reached(model):
    async with served() as (simulator, client), trio.open_nursery() as nursery:

        async def resume_at_once():
            await simulator.wait_until(lambda counts: counts.open == 1)
            simulator.resume_all()

        nursery.start_soon(resume_at_once)
        assert (await client.post("/chat/completions", json=body(model))).status_code in {200, 500}


async def test_the_controls_work_over_http():
    async with served() as (simulator, client), trio.open_nursery() as nursery:
        nursery.start_soon(read, client, "pause-1-2")
        await simulator.wait_until(lambda counts: counts.paused == 1)
        counters = (await client.get(f"{simulator.origin}/control/counters")).json()
        assert (counters["open"], counters["by_model"]) == (1, {"pause-1-2": 1})
        by_key = await client.post(f"{simulator.origin}/control/resume?key=nobody")
        everybody = await client.post(f"{simulator.origin}/control/resume-all")
        assert (by_key.json(), everybody.json()) == ({"resumed": 0}, {"resumed": 1})
        await simulator.wait_until(lambda counts: counts.completed == 1)
        await client.post(f"{simulator.origin}/control/reset")
        assert simulator.statistics().total == 0
        assert (await client.get(f"{simulator.origin}/control/nonsense")).status_code == 404


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "model", ["hang", "hanghead", "hangbody", "stall-2", "pause-2-4", "slow-2-3600000", "gate-2", "after-3600000-2"]
)
async def test_a_client_that_leaves_a_silent_answer_is_noticed_at_once(model, stream):
    async with served() as (simulator, client):
        await leave_when(simulator, client, body(model, "key:k", stream=stream), lambda counts: counts.open == 1)
        await simulator.wait_aborted("k")
        counts = await simulator.wait_until(lambda counts: counts.connections == 0)
    assert (counts.total, counts.aborted_by_client, counts.open, counts.paused) == (1, 1, 0, 0)


async def test_a_reset_by_the_client_is_noticed_as_well():
    async with open_simulator() as simulator:
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulator.origin.rpartition(":")[2]))
        payload = b'{"model": "stall-1", "stream": true}'
        await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(payload))
        await stream.send_all(payload)
        await simulator.wait_until(lambda counts: counts.tokens_sent == 1)
        await stream.aclose()  # with bytes unread, which makes it a reset
        with trio.fail_after(5):
            assert (await simulator.wait_until(lambda counts: counts.connections == 0)).aborted_by_client == 1


@pytest.mark.slow
async def test_a_client_that_never_reads_is_noticed_when_it_leaves():
    async with open_simulator() as simulator:
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulator.origin.rpartition(":")[2]))
        payload = b'{"model": "big-30000000", "stream": true}'
        await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(payload))
        await stream.send_all(payload)
        await simulator.wait_until(lambda counts: counts.open == 1)
        await stream.aclose()
        with trio.fail_after(5):
            assert (await simulator.wait_until(lambda counts: counts.open == 0)).aborted_by_client == 1


async def test_a_pipelined_request_is_answered_after_the_one_being_watched():
    async with served() as (simulator, _):
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulator.origin.rpartition(":")[2]))
        payload = b'{"model": "pause-1-2"}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(payload)
        async with stream:
            await stream.send_all(head + payload)
            await simulator.wait_until(lambda counts: counts.paused == 1)
            await stream.send_all(head + payload)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                await simulator.wait_until(lambda counts: counts.paused == 1)
                simulator.resume_all()
                await stream.receive_some()
            assert (await simulator.wait_until(lambda counts: counts.open == 0)).completed == 2


async def test_each_request_is_counted_once_whatever_its_end():
    async with served() as (simulator, client):
        for model in ["echo-3", "error-500", "cut-1", "garbage-1", "length-2"]:
            await read(client, model)
        await leave_when(simulator, client, body("hang"), lambda counts: counts.open == 1)
        counts = await simulator.wait_idle()
    assert (counts.total, counts.completed, counts.failed, counts.aborted_by_client) == (6, 2, 3, 1)
    assert counts.tokens_sent == 3 + 1 + 1 + 2
    assert counts.prompt_tokens == 6
    assert counts.by_model["hang"] == 1


async def test_the_usage_that_was_reported_is_added_up():
    async with served() as (simulator, client):
        asked = body("echo-3") | {"stream_options": {"include_usage": True}}
        await client.post("/chat/completions", json=asked)
        await client.post("/chat/completions", json=body("echo-3"))
        await client.post("/chat/completions", json=body("echo-3", stream=False))
        assert (await simulator.wait_idle()).completion_tokens_reported == 3 + 0 + 3


@pytest.mark.slow
async def test_four_hundred_streams_at_once_are_all_answered():
    async def ask(port):
        payload = b'{"model": "pause-2-20", "messages": [{"role": "user", "content": "key:crowd"}]}'
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            await stream.send_all(head % len(payload) + payload)
            answers.append(b"".join([piece async for piece in stream]))

    answers: list[bytes] = []
    async with open_simulator() as simulator, trio.open_nursery() as nursery:
        for _ in range(400):
            nursery.start_soon(ask, int(simulator.origin.rpartition(":")[2]))
        await simulator.wait_until(lambda counts: counts.paused == 400)
        assert simulator.resume("crowd") == 400
        await simulator.wait_until(lambda counts: counts.completed == 400 and counts.connections == 0)
    assert all(expected_text("pause-2-20").encode() in answer for answer in answers)


async def test_stopping_the_simulator_ends_every_stream_and_leaves_no_task():
    tasks_before = len(trio.lowlevel.current_root_task().child_nurseries)
    statistics = trio.lowlevel.current_statistics().tasks_living
    async with open_simulator() as simulator, httpx.AsyncClient(base_url=simulator.base_url) as client:
        await leave_when(simulator, client, body("stall-1"), lambda counts: counts.open == 1)
        async with client.stream("POST", "/chat/completions", json=body("slow-9-3600000")):
            pass
    assert len(trio.lowlevel.current_root_task().child_nurseries) == tasks_before
    assert trio.lowlevel.current_statistics().tasks_living == statistics
