"""The server of scripted tools: what it plays, counts and waits for."""

from functools import partial

import httpx
import pytest
import trio

from dwctl_trio.testing.tool_server import ToolReply, open_tool_server

WAIT_S = 10.0


async def test_replies_are_played_one_after_the_other_and_the_last_repeats() -> None:
    async with open_tool_server() as server, httpx.AsyncClient(trust_env=False) as client:
        server.script("/tool", ToolReply(status=503, body=b""), ToolReply(body=b"fine"))

        answers = [await client.post(server.url("/tool"), json={}) for _ in range(3)]

        assert [(answer.status_code, answer.text) for answer in answers] == [(503, ""), (200, "fine"), (200, "fine")]


async def test_a_tool_without_a_script_echoes_and_every_key_is_counted() -> None:
    async with open_tool_server() as server, httpx.AsyncClient(trust_env=False) as client:
        for key in ("a", "b", "a"):
            answer = await client.post(server.url("/any"), json={"key": key}, headers={"idempotency-key": key})
            assert answer.json() == {"key": key}

        assert server.calls_by_key == {"a": 2, "b": 1}
        assert [(call.path, call.arguments["key"]) for call in server.calls] == [
            ("/any", "a"),
            ("/any", "b"),
            ("/any", "a"),
        ]


async def test_a_paused_call_goes_on_when_it_is_resumed_and_a_client_that_leaves_is_noticed() -> None:
    async with open_tool_server() as server, httpx.AsyncClient(trust_env=False) as client:
        server.script("/head", ToolReply(pauses_at="head"))
        server.script("/body", ToolReply(pauses_at="body", is_chunked=True))
        async with trio.open_nursery() as nursery:
            for path in ("/head", "/body"):
                nursery.start_soon(partial(client.post, server.url(path), content=b"some arguments"))
            with trio.fail_after(WAIT_S):
                await server.wait_until(lambda now: now.paused == 2)
            assert (server.open, server.resume_all(), server.resume_all()) == (2, 2, 2)
        with trio.fail_after(WAIT_S):
            await server.wait_until(lambda now: now.answered == 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.post, server.url("/head"))
            await server.wait_until(lambda now: now.paused == 1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(WAIT_S):
            await server.wait_until(lambda now: now.left == 1)


async def test_an_answer_is_cut_where_the_script_says() -> None:
    cuts = (ToolReply(cuts_at="body"), ToolReply(cuts_at="head"), ToolReply(cuts_at="head", resets=True))
    async with open_tool_server() as server, httpx.AsyncClient(trust_env=False) as client:
        server.script("/tool", *cuts, ToolReply())
        for _ in cuts:
            with pytest.raises(httpx.TransportError):
                await client.post(server.url("/tool"), content=b"some arguments")

        assert (await client.post(server.url("/tool"), content=b"whole")).text == "whole"
        with trio.fail_after(WAIT_S):
            await server.wait_until(lambda now: (now.cut, now.answered) == (3, 1))


async def test_redirects_lead_to_a_tool_that_echoes() -> None:
    async with open_tool_server() as server, httpx.AsyncClient(trust_env=False, follow_redirects=True) as client:
        server.script_redirects("/tool", hops=2, status=308)

        answer = await client.post(server.url("/tool"), json=[1])

        assert (answer.json(), [call.path for call in server.calls]) == ([1], ["/tool", "/tool/1", "/tool/2"])
