"""Without a collector: a client's trace goes on to the upstream and into the log, and nothing else of its headers."""

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.acceptance.conftest import QUICK, open_http, open_server, open_world
from tests.http.conftest import DELTA, WAIT_S, as_request, ask, open_raw, wait_terminal

from dwctl_trio.testing.service import Service, open_service

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
OURS = {"host", "content-type", "content-length", "accept", "accept-encoding"}
"""What the upstream gets with every call."""
WORD = "canary"
FOREIGN = {
    "cookie": WORD,
    "user-agent": WORD,
    "x-request-id": WORD,
    "baggage": f"user={WORD}",
    "x-forwarded-for": WORD,
    "authorization": f"Bearer {WORD}",
    "idempotency-key": WORD,
    "openai-organization": WORD,
    "b3": WORD,
    "traceresponse": TRACEPARENT,
    "x-b3-traceid": TRACE,
    "referer": f"https://{WORD}.example",
}


async def sent_upstream(service: Service, headers: dict[str, str], model: str = "echo-1") -> dict[str, str]:
    """The headers of the model call of a request with *headers*."""
    answer = await service.client.post("/v1/responses", json=ask(model, stream=True), headers=headers)
    assert answer.status_code == 200, answer.text
    return service.simulator.requests[-1].headers


async def test_the_trace_of_a_client_goes_on_to_the_upstream_and_nothing_else_of_its_headers(service: Service) -> None:
    with_state = await sent_upstream(service, FOREIGN | {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"})
    again = {"idempotency-key": f"again-{WORD}"}  # the same key would not be sent upstream a second time
    without_state = await sent_upstream(service, FOREIGN | again | {"traceparent": TRACEPARENT})
    state_too_long = {"traceparent": TRACEPARENT, "tracestate": f"a={WORD * 60},b={WORD * 40}"}

    assert set(with_state) == OURS | {"traceparent", "tracestate"}
    assert (with_state["traceparent"], with_state["tracestate"]) == (TRACEPARENT, "a=1,b=2")
    assert set(without_state) == OURS | {"traceparent"}
    assert WORD not in str(with_state) + str(without_state)
    assert set(await sent_upstream(service, state_too_long)) == OURS | {"traceparent"}


async def test_without_a_trace_of_the_client_nothing_of_one_is_sent(service: Service) -> None:
    for headers in ({}, {"tracestate": "a=1"}, {"traceparent": "", "tracestate": "a=1"}, FOREIGN):
        assert set(await sent_upstream(service, headers)) == OURS


async def test_two_traceparents_are_none(service: Service) -> None:
    async with open_raw(service) as client:
        lines = [f"traceparent: {TRACEPARENT}", f"traceparent: {TRACEPARENT}"]
        await client.send(as_request(ask("echo-1", key="two", stream=True), *lines))
        await client.read_until(DELTA)
        await wait_terminal(service, "two")

    assert set(service.simulator.requests[-1].headers) == OURS


visible = st.lists(st.integers(0x21, 0x7E) | st.integers(0x80, 0xFF), max_size=80).map(bytes)
nearly = st.from_regex(rb"[0-9a-fA-F]{2}-[0-9a-fz]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}", fullmatch=True)
states = st.from_regex(rb"([a-zA-Z]{1,9}=[!-~]{1,80},? ?){0,9}", fullmatch=True).map(bytes.strip)


@pytest.mark.slow
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(st.tuples(visible | nearly, visible | states), min_size=10, max_size=20))
async def test_whatever_a_client_sends_as_its_trace_it_is_answered(
    postgres_dsn: str, sent: list[tuple[bytes, bytes]]
) -> None:
    async with open_service(postgres_dsn) as service:
        for traceparent, tracestate in sent:
            headers = {b"traceparent": traceparent, b"tracestate": tracestate}
            answer = await service.client.post("/v1/responses", json=ask("echo-1"), headers=headers)
            upstream = service.simulator.requests[-1].headers

            assert answer.status_code == 200
            assert set(upstream) - OURS <= {"traceparent", "tracestate"}
            assert "tracestate" not in upstream or "traceparent" in upstream


async def test_headers_that_the_operator_gave_an_upstream_do_not_displace_the_trace(postgres_dsn: str) -> None:
    upstreams = {"simulator": {"headers": {"traceparent": "operator", "x-team": "operator"}}}
    async with open_service(postgres_dsn, {"upstreams": upstreams}) as service:
        upstream = await sent_upstream(service, {"traceparent": TRACEPARENT})

    assert (upstream["traceparent"], upstream["x-team"]) == (TRACEPARENT, "operator")


@pytest.mark.slow
async def test_the_line_of_a_response_has_the_ids_of_its_request_and_its_trace(postgres_dsn: str, tmp_path) -> None:
    limits = attrs.evolve(QUICK, shutdown_grace_s=5.0)
    async with (
        open_world(postgres_dsn, tmp_path, limits) as (path, _, _),
        open_server(path) as server,
        open_http(server) as http,  # one connection for all
    ):
        for stream, headers in (
            (False, {"x-request-id": "mine", "traceparent": TRACEPARENT}),
            (True, {"x-request-id": "mine-too", "traceparent": TRACEPARENT.replace("4", "5")}),
            (True, {"x-request-id": "not mine"}),
        ):
            body = ask("echo-1", stream=stream)
            answer = await http.post("/v1/responses", json=body, headers=headers, timeout=WAIT_S)
            assert answer.status_code == 200
        made_id = answer.headers["x-request-id"]
        await server.wait_logged("response_finished")
        await http.aclose()
        server.process.terminate()
        await server.wait_logged("server_stopped")
    lines = [line for line in server.log if line["event"] == "response_finished"]

    assert [line["request_id"] for line in lines] == ["mine", "mine-too", made_id]
    assert [line.get("trace_id") for line in lines] == [TRACE, TRACE.replace("4", "5"), None]
