"""Calls of HTTP tools over real sockets: what is sent, what comes back, and every way to fail."""

import itertools
import json
import ssl
from typing import Any
from uuid import uuid4

import pytest
import trio
import trustme
from tests.tools.places import PUBLIC, RESPONSE_ID, LocalNetwork, Names, invocation, open_tls_front, tool

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.ports import ToolInvocation
from dwctl_trio.testing.tool_server import ToolReply, open_tool_server
from dwctl_trio.tools.http_tools import HttpToolRunner

WAIT_S = 10.0
"""Bound of the tests' waits: far more than any needs on a busy machine."""
SECRET = "sk-c4n4ry-1234567890"
SCHEMA = b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false}'


_numbers = itertools.count(1)


def number(value: object) -> str | None:
    """The name of a case: a reply's own would be as long as its body."""
    return f"reply-{next(_numbers)}" if isinstance(value, ToolReply) else ""


async def run(call: ToolInvocation, limits: Limits | None = None, **options: Any) -> str:
    with trio.fail_after(WAIT_S):
        return await HttpToolRunner(limits or Limits(), **options).run_tool(call)


async def failure_of(call: ToolInvocation, limits: Limits | None = None, **options: Any) -> ToolFailed:
    """How the call fails; whatever it says names no place and no secret."""
    with pytest.raises(ToolFailed) as caught:
        await run(call, limits, **options)
    told = str(caught.value)
    for hidden in (SECRET, "127.0.0.1", "://", "example", "Error(", "httpx", "Traceback", PUBLIC):
        assert hidden not in told
    assert told[-1] in ".…" or "status 4" in told
    return caught.value


async def answer(reply: ToolReply, limits: Limits | None = None, **keys: Any) -> str:
    async with open_tool_server() as server:
        server.script("/tool", reply)
        return await run(invocation(tool(server.url("/tool"), **keys)), limits)


async def failed_answer(reply: ToolReply, limits: Limits | None = None, **keys: Any) -> ToolFailed:
    async with open_tool_server() as server:
        server.script("/tool", reply)
        return await failure_of(invocation(tool(server.url("/tool"), **keys)), limits)


# -- what is sent


async def test_the_arguments_are_posted_with_the_headers_that_the_contract_names() -> None:
    step_id = uuid4()
    async with open_tool_server() as server:
        used = tool(server.url("/weather?unit=c"), headers=(("Authorization", f"Bearer {SECRET}"), ("x-team", "blue")))
        call = invocation(used, '{"city": "Oslo", "city": "Bergen"}', step_id)

        output = await run(call)
        assert await run(call) == output

        first, second = server.calls
        assert output == '{"city":"Bergen"}'
        assert (first.method, first.path, first.arguments) == ("POST", "/weather", {"city": "Bergen"})
        expected = {
            "content-type": "application/json",
            "authorization": f"Bearer {SECRET}",
            "x-team": "blue",
            "idempotency-key": f"resp_{RESPONSE_ID}-{step_id}",
            "x-response-id": f"resp_{RESPONSE_ID}",
            "content-length": str(len(output)),
            "host": server.origin.removeprefix("http://"),
        }
        assert {name: first.headers[name] for name in expected} == expected
        assert first.headers["user-agent"].startswith("dwctl-trio/")
        assert second.headers == first.headers
        assert server.calls_by_key == {f"resp_{RESPONSE_ID}-{step_id}": 2}


async def test_the_operator_may_name_another_user_agent() -> None:
    async with open_tool_server() as server:
        await run(invocation(tool(server.url("/tool"), headers=(("User-Agent", "whale/1"),))))

        assert server.calls[0].headers["user-agent"] == "whale/1"


@pytest.mark.parametrize("arguments", ["", "  \n", "{}"])
async def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    async with open_tool_server() as server:
        assert await run(invocation(tool(server.url("/tool")), arguments)) == "{}"


async def test_arguments_that_the_schema_refuses_are_never_sent() -> None:
    async with open_tool_server() as server:
        used = tool(server.url("/tool"), parameters=SCHEMA)

        for arguments in ('{"city": 7}', '{"town": "Oslo"}', "{", "[]", "", '{"city": "' + "x" * 3000 + '"}'):
            failure = await failure_of(invocation(used, arguments), Limits(tool_arguments_bytes=2048))
            assert failure.kind is ErrorType.TOOL_ARGUMENTS_INVALID

        assert (server.accepted, server.calls) == (0, ())


async def test_no_proxy_of_the_environment_sees_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")

    assert await answer(ToolReply(body=b"direct")) == "direct"


# -- what comes back


@pytest.mark.parametrize(
    ("reply", "output"),
    [
        (ToolReply(body=b'{"celsius": 21}'), '{"celsius": 21}'),
        (ToolReply(body="Blåbær 🐋".encode(), content_type="text/plain; charset=utf-8"), "Blåbær 🐋"),
        (ToolReply(body="Blåbær".encode("latin-1"), content_type='text/plain; charset="ISO-8859-1"'), "Blåbær"),
        (ToolReply(body="Blåbær".encode("utf-16"), content_type="text/plain; x=y;charset=UTF-16"), "Blåbær"),
        (ToolReply(body=b"\xef\xbb\xbfwith a mark", content_type="text/plain"), "with a mark"),
        (ToolReply(body=b"a\0b", content_type="text/plain"), "a\N{REPLACEMENT CHARACTER}b"),
        (ToolReply(body=b"", status=202), ""),
        (ToolReply(body=b"x" * 300_000, is_chunked=True), "x" * 300_000),
        (ToolReply(body=b"no type", content_type=""), "no type"),
    ],
    ids=number,
)
async def test_the_body_is_the_output(reply: ToolReply, output: str) -> None:
    assert await answer(reply) == output


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_output_may_be_as_long_as_the_limit_and_not_a_byte_longer(is_chunked: bool) -> None:
    limits = Limits(tool_output_bytes=1000)

    assert len(await answer(ToolReply(body=b"x" * 1000, is_chunked=is_chunked), limits)) == 1000
    failure = await failed_answer(ToolReply(body=b"x" * 1001, is_chunked=is_chunked), limits)

    assert (failure.kind, str(failure)) == (
        ErrorType.EXECUTOR_ERROR,
        "The tool's answer is too long: at most 1000 bytes are allowed.",
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (ToolReply(body=b"\xff\xfe\xfd", content_type="image/png"), "The tool's answer is not text."),
        (
            ToolReply(body=b"x", content_type="text/plain; charset=rot13"),
            "The tool's answer is in a charset that is not known here; UTF-8 always is.",
        ),
        (
            ToolReply(body=b"x", headers=(("content-encoding", "gzip"),)),
            "The tool's answer is compressed, which it was asked not to be.",
        ),
        (ToolReply(status=500, body=b"stack trace"), "The tool answered with an error (status 500)."),
        (ToolReply(status=503, body=b"at 10.0.0.1"), "The tool answered with an error (status 503)."),
        (ToolReply(status=401, body=b"wrong key"), "The tool answered with an error (status 401)."),
        (ToolReply(status=403, body=b"wrong key"), "The tool answered with an error (status 403)."),
        (ToolReply(status=404, body=b"<p>", content_type="text/html"), "The tool answered with an error (status 404)."),
        (ToolReply(status=400, body=b""), "The tool answered with an error (status 400)."),
        (
            ToolReply(status=422, body=b'{"detail":\n "no such city"}'),
            'The tool answered with an error (status 422): {"detail": "no such city"}',
        ),
        (
            ToolReply(status=404, body=b"no such city", content_type="text/plain"),
            "The tool answered with an error (status 404): no such city",
        ),
        (
            ToolReply(status=400, body=b"y" * 100_000),
            f"The tool answered with an error (status 400): {'y' * 1000}…",
        ),
        (ToolReply(status=400, body=SECRET.encode()), "The tool answered with an error (status 400)."),
        (ToolReply(status=304, body=b""), "The tool answered with an error (status 304)."),
    ],
    ids=number,
)
async def test_an_answer_that_is_no_output_is_a_failure_that_says_why(reply: ToolReply, message: str) -> None:
    failure = await failed_answer(reply, headers=(("authorization", f"Bearer {SECRET}"),))

    assert (failure.kind, str(failure)) == (ErrorType.EXECUTOR_ERROR, message)


@pytest.mark.parametrize(
    "reply",
    [
        ToolReply(cuts_at="head"),
        ToolReply(cuts_at="head", resets=True),
        ToolReply(body=b"x" * 1000, cuts_at="body"),
        ToolReply(body=b"x" * 1000, cuts_at="body", resets=True),
        ToolReply(body=b"x" * 1000, cuts_at="body", is_chunked=True),
        ToolReply(headers=(("x-large", "x" * 200_000),)),
    ],
    ids=number,
)
async def test_an_answer_that_is_not_whole_is_a_failure(reply: ToolReply) -> None:
    failure = await failed_answer(reply)

    assert (failure.kind, str(failure)) == (
        ErrorType.EXECUTOR_ERROR,
        "The connection to the tool broke before its answer was whole.",
    )


# -- where it goes


async def test_a_tool_in_a_private_network_must_be_allowed_to_be_there() -> None:
    async with open_tool_server() as server:
        failure = await failure_of(invocation(tool(server.url("/tool"), allow_private=False)))

        assert (failure.kind, server.accepted) == (ErrorType.EXECUTOR_ERROR, 0)
        assert str(failure) == "The tool is at an address where tools are not allowed to be."


async def test_a_tool_that_is_not_there_cannot_be_reached() -> None:
    Names()
    for url in ("http://127.0.0.1:1/tool", "http://unknown.example/tool"):
        failure = await failure_of(invocation(tool(url)))

        assert (failure.kind, str(failure)) == (ErrorType.EXECUTOR_ERROR, "The tool could not be reached.")


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_the_post_is_followed(status: int) -> None:
    async with open_tool_server() as server:
        server.script_redirects("/tool", hops=3, status=status)

        output = await run(invocation(tool(server.url("/tool"), headers=(("x-key", SECRET),))))

        assert json.loads(output) == {"city": "Oslo"}
        assert [call.path for call in server.calls] == ["/tool", "/tool/1", "/tool/2", "/tool/3"]
        assert {call.headers["x-key"] for call in server.calls} == {SECRET}
        assert len(server.calls_by_key) == 1


async def test_a_redirect_too_many_is_a_failure() -> None:
    async with open_tool_server() as server:
        server.script_redirects("/tool", hops=4)
        server.script("/round", ToolReply(status=307, body=b"", headers=(("location", "/round"),)))

        for path in ("/tool", "/round"):
            failure = await failure_of(invocation(tool(server.url(path))))
            assert str(failure) == "The tool redirected the call more than 3 times."
        assert len(server.calls) == 8


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_would_lose_the_arguments_is_refused(status: int) -> None:
    failure = await failed_answer(ToolReply(status=status, body=b"", headers=(("location", "/else"),)))

    assert str(failure).startswith(f"The tool answered with a redirect that drops the arguments (status {status})")


LOCATIONS = [
    *("http://169.254.169.254/latest/meta-data", "http://2852039166/", "http://[::ffff:169.254.169.254]/"),
    *("http://10.0.0.1/", "http://localhost./", "//127.0.0.2/", "http://[::1]/", "http://0x7f.1/", "http://0/"),
    *("http://[64:ff9b::a9fe:a9fe]/", "http://private.example/", "http://mixed.example/", "http://127.0.0.1:1/"),
]


@pytest.mark.parametrize("location", LOCATIONS)
async def test_a_redirect_from_a_public_tool_to_a_private_place_is_refused(location: str) -> None:
    Names(
        tool_example=[[PUBLIC]],
        private_example=[["192.168.0.1"]],
        mixed_example=[[PUBLIC, "10.0.0.1"]],
        **{"localhost.": [["127.0.0.1"]]},
    )
    async with open_tool_server() as server:
        server.script("/tool", ToolReply(status=307, body=b"", headers=(("location", location),)))
        network = LocalNetwork(server.origin)

        for allow_private in (False, True):  # which is for the tool's own origin only
            network.dialled.clear()
            call = invocation(tool("http://tool.example/tool", allow_private=allow_private))
            failure = await failure_of(call, network=network)

            assert str(failure) == "The tool is at an address where tools are not allowed to be."
            assert network.dialled == [(PUBLIC, 80)]


async def test_a_name_that_answers_differently_after_a_redirect_is_checked_again() -> None:
    Names(tool_example=[[PUBLIC], ["127.0.0.1"]])
    async with open_tool_server() as server:
        server.script_redirects("/tool", hops=1)
        network = LocalNetwork(server.origin)

        await failure_of(invocation(tool("http://tool.example/tool", allow_private=False)), network=network)

        assert network.dialled == [(PUBLIC, 80)]


async def test_what_is_the_tools_own_never_reaches_another_origin_nor_comes_back() -> None:
    Names(tool_example=[[PUBLIC]], other_example=[[PUBLIC]])
    async with open_tool_server() as server:
        for path, location in {"/tool": "http://other.example/a", "/a": "http://tool.example/b"}.items():
            server.script(path, ToolReply(status=308, body=b"", headers=(("location", location),)))
        used = tool("http://tool.example/tool", headers=(("authorization", SECRET), ("x-team", SECRET)))

        await run(invocation(used), network=LocalNetwork(server.origin))

        assert [SECRET in call.headers.values() for call in server.calls] == [True, False, False]
        assert [call.headers["host"] for call in server.calls] == ["tool.example", "other.example", "tool.example"]


@pytest.mark.parametrize(
    "location", ["ftp://tool.example/", "file:///etc/passwd", "unix:/run/x", "http://u:p@tool.example/", None]
)
async def test_a_redirect_to_what_is_no_address_is_refused(location: str | None) -> None:
    headers = () if location is None else (("location", location),)

    failure = await failed_answer(ToolReply(status=307, body=b"", headers=headers))

    assert str(failure) == "The tool redirected the call to something that is no address."


@pytest.mark.parametrize("location", ["http://[/", "http://a:99999/", "http://\N{SNOWMAN}/", "http://..../", "//%00/"])
async def test_a_redirect_to_what_cannot_be_an_address_ends_in_a_failure_like_any_other(location: str) -> None:
    Names()
    headers = (("location", location.encode().decode("latin-1")),)

    assert (await failed_answer(ToolReply(status=307, body=b"", headers=headers))).kind is ErrorType.EXECUTOR_ERROR


# -- TLS


def trust_in(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_verifies_the_name_and_not_the_address() -> None:
    authority = trustme.CA()
    tls = trust_in(authority)
    Names(tool_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    async with open_tool_server() as server, open_tls_front(server, authority, "tool.example") as port:
        assert await run(invocation(tool(f"https://tool.example:{port}/tool")), tls=tls) == '{"city":"Oslo"}'
        for url in (f"https://other.example:{port}/tool", f"https://127.0.0.1:{port}/tool"):
            assert str(await failure_of(invocation(tool(url)), tls=tls)) == "The tool could not be reached."
        unknown = f"https://tool.example:{port}/tool"
        assert str(await failure_of(invocation(tool(unknown)))) == "The tool could not be reached."
        assert len(server.calls) == 1


async def test_a_redirect_from_https_to_http_is_refused() -> None:
    authority = trustme.CA()
    Names(tool_example=[["127.0.0.1"]])
    async with open_tool_server() as server, open_tls_front(server, authority, "tool.example") as port:
        server.script("/tool", ToolReply(status=307, body=b"", headers=(("location", server.url("/else")),)))

        call = invocation(tool(f"https://tool.example:{port}/tool"))
        failure = await failure_of(call, tls=trust_in(authority))

        assert str(failure) == "The tool redirected the call from https to http, which is not followed."


# -- time and places


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply",
    [ToolReply(pauses_at="head"), ToolReply(body=b"x" * 9, pauses_at="body"), ToolReply(delay_s=WAIT_S)],
    ids=["head", "body", "delay"],
)
async def test_a_tool_that_is_too_slow_is_left_in_time(reply: ToolReply) -> None:
    async with open_tool_server() as server:
        server.script("/tool", reply)

        failure = await failure_of(invocation(tool(server.url("/tool"), timeout_s=0.3)))

        assert (failure.kind, str(failure)) == (ErrorType.TOOL_TIMEOUT, "The tool did not answer within 0.3 s.")
        with trio.fail_after(1.0):
            await server.wait_until(lambda now: now.left == 1)


@pytest.mark.slow
async def test_the_time_is_for_all_redirects_together() -> None:
    async with open_tool_server() as server:
        for hop in range(3):
            location = ("location", f"/tool/{hop + 1}")
            path = "/tool" if hop == 0 else f"/tool/{hop}"
            server.script(path, ToolReply(status=307, body=b"", delay_s=0.2, headers=(location,)))

        failure = await failure_of(invocation(tool(server.url("/tool"), timeout_s=0.5)))

        assert (failure.kind, len(server.calls)) == (ErrorType.TOOL_TIMEOUT, 3)


async def test_calls_above_the_bound_wait_for_a_place() -> None:
    async with open_tool_server() as server, trio.open_nursery() as nursery:
        server.script("/tool", ToolReply(pauses_at="head"))
        runner = HttpToolRunner(Limits(tool_connections=2))
        outputs: list[str] = []

        async def call() -> None:
            outputs.append(await runner.run_tool(invocation(tool(server.url("/tool")))))

        for _ in range(5):
            nursery.start_soon(call)
        with trio.fail_after(WAIT_S):
            for paused, answered in ((2, 2), (2, 4), (1, 5)):
                await server.wait_until(lambda now, paused=paused: now.paused == paused)
                await trio.testing.wait_all_tasks_blocked()
                assert server.open == paused
                server.resume_all()
                await server.wait_until(lambda now, answered=answered: now.answered == answered)
    assert len(outputs) == 5


@pytest.mark.slow
async def test_a_call_that_gets_no_place_in_its_time_was_not_made() -> None:
    async with open_tool_server() as server, trio.open_nursery() as nursery:
        server.script("/tool", ToolReply(pauses_at="head"))
        runner = HttpToolRunner(Limits(tool_connections=1))
        nursery.start_soon(runner.run_tool, invocation(tool(server.url("/tool"))))
        await server.wait_until(lambda now: now.paused == 1)

        with pytest.raises(ToolFailed) as caught:
            await runner.run_tool(invocation(tool(server.url("/tool"), timeout_s=0.2)))

        assert caught.value.kind is ErrorType.TOOL_TIMEOUT
        assert str(caught.value) == "No place for the call became free within 0.2 s; it was not made."
        assert len(server.calls) == 1
        server.resume_all()


async def test_every_call_has_a_connection_of_its_own() -> None:
    async with open_tool_server() as server:
        runner = HttpToolRunner(Limits())
        for _ in range(3):
            await runner.run_tool(invocation(tool(server.url("/tool"))))
        with trio.fail_after(WAIT_S):
            await server.wait_idle()

        assert (server.accepted, server.answered) == (3, 3)
