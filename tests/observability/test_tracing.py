"""Spans of the running service, told to a real collector: what is in them, what never is, and collectors that fail."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from tests.acceptance.conftest import QUICK, open_http, open_server, open_world
from tests.http.conftest import DELTA, WAIT_S, as_request, ask, open_raw, wait_terminal
from tests.observability.collector import CLIENT, ERROR, OK, SERVER, Collector, SeenSpan, open_collector

from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import Service, open_service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "vendor=x"}
FLUSH_S = 0.3


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter reads the environment: the machine's own has no say, and no proxy is asked."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@asynccontextmanager
async def traced(dsn: str, collector: Collector, **overrides: Any) -> AsyncIterator[Service]:
    """The service, telling *collector*; when the block has ended, everything has been told."""
    async with open_service(dsn, {"tracing": {"endpoint": collector.endpoint}, **overrides}) as service:
        yield service


def of_kind(collector: Collector, kind: int) -> list[SeenSpan]:
    return [span for span in collector.spans if span.kind == kind]


def sent_upstream(service: Service) -> dict[str, str]:
    return {name: value for name, value in service.simulator.requests[-1].headers.items() if name.startswith("trace")}


@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "stream"])
async def test_a_request_and_its_model_call_are_two_spans_of_the_trace_that_the_client_named(
    postgres_dsn: str, stream: bool
) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            answer = await service.client.post("/v1/responses", json=ask("echo-3", stream=stream), headers=SAMPLED)
            upstream = sent_upstream(service)
            row = await wait_terminal(service, "none")
        request, call = collector.spans

    assert answer.status_code == 200
    assert {span.trace_id for span in (request, call)} == {TRACE}
    assert {span.tracestate for span in (request, call)} == {"vendor=x"}
    assert (request.parent_id, call.parent_id) == (PARENT, request.span_id)
    assert upstream == {"traceparent": f"00-{TRACE}-{call.span_id}-01", "tracestate": "vendor=x"}
    assert (request.name, request.kind, request.status) == ("POST /v1/responses", SERVER, OK)
    assert request.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/v1/responses",
        "http.response.status_code": 200,
    }
    assert (call.name, call.kind, call.status) == ("chat echo-3", CLIENT, OK)
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "simulator",
        "gen_ai.request.model": "echo-3",
        "gen_ai.response.id": f"resp_{row['id']}",
        "gen_ai.usage.input_tokens": json.loads(row["response"])["usage"]["input_tokens"],
        "gen_ai.usage.output_tokens": 3,
    }
    assert request.duration_s >= call.duration_s > 0
    assert request.resource["service.name"] == "dwctl-trio"
    assert [path for path, _ in collector.requests] == ["/v1/traces"] * len(collector.requests)


async def test_a_request_without_a_trace_begins_one_and_the_upstream_is_told(postgres_dsn: str) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            for headers in ({}, {"traceparent": "00-malformed", "tracestate": "vendor=x"}):
                await service.client.post("/v1/responses", json=ask("echo-1"), headers=headers)
            upstream = [request.headers for request in service.simulator.requests]
        requests, calls = of_kind(collector, SERVER), of_kind(collector, CLIENT)

    assert [span.parent_id for span in requests] == ["", ""]
    assert len({span.trace_id for span in requests}) == 2
    assert [call.parent_id for call in calls] == [request.span_id for request in requests]
    assert [headers["traceparent"][:52] for headers in upstream] == [
        f"00-{call.trace_id}-{call.span_id}" for call in calls
    ]
    assert ["tracestate" in headers for headers in upstream] == [False, False]


async def test_a_trace_that_the_client_did_not_sample_is_not_told_and_goes_on_unsampled(postgres_dsn: str) -> None:
    async with open_collector() as collector, traced(postgres_dsn, collector) as service:
        await service.client.post("/v1/responses", json=ask("echo-1"), headers=UNSAMPLED)
        upstream = sent_upstream(service)

    assert collector.bodies == []
    assert upstream["traceparent"].startswith(f"00-{TRACE}-")
    assert upstream["traceparent"].endswith("-00")
    assert upstream["tracestate"] == "vendor=x"


@pytest.mark.parametrize(
    ("model", "status", "error"),
    [("error-500", 502, "500"), ("error-429-1", 429, "429"), ("error-400", 400, "400"), ("html-502", 502, "502")],
)
async def test_a_refusal_of_the_upstream_is_an_error_with_its_status(
    postgres_dsn: str, model: str, status: int, error: str
) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            answer = await service.client.post("/v1/responses", json=ask(model))
        request, call = collector.spans

    assert answer.status_code == status == request.attributes["http.response.status_code"]
    assert (call.status, call.attributes["error.type"]) == (ERROR, error)
    is_fault = status >= 500
    assert (request.status, request.attributes.get("error.type")) == (
        (ERROR, str(status)) if is_fault else (OK, None)
    ), "a client's fault is no error of the server"


async def test_an_answer_that_breaks_off_is_an_error_of_the_call(postgres_dsn: str) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            await service.client.post("/v1/responses", json=ask("echo-2-cut-each", stream=True))
        request, call = collector.spans

    assert (call.status, call.attributes["error.type"]) == (ERROR, "upstream_error")
    assert (request.status, request.attributes["http.response.status_code"]) == (OK, 200), "its stream had begun"
    assert call.events == 0, "no exception, no message"


async def test_a_client_that_leaves_ends_both_spans_at_once(postgres_dsn: str) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            async with open_raw(service) as client:
                await client.send(as_request(ask("pause-1-4", key="late", stream=True)))
                await client.read_until(DELTA)
                await client.hang_up()
                await wait_terminal(service, "late")
            async with open_raw(service) as client:
                await client.send(as_request(ask("pause-0-4", key="early", stream=False)))
                with trio.fail_after(WAIT_S):
                    await service.simulator.wait_until(lambda counts: counts.paused == 1)
                await client.hang_up()
                await wait_terminal(service, "early")
        requests, calls = of_kind(collector, SERVER), of_kind(collector, CLIENT)

    assert [(call.status, call.attributes["error.type"]) for call in calls] == [(ERROR, "cancelled")] * 2
    assert [request.attributes.get("http.response.status_code") for request in requests] == [200, None]
    assert [request.attributes.get("error.type") for request in requests] == [None, "cancelled"]


async def test_every_request_below_v1_is_a_span_named_by_its_route_and_no_other_is(postgres_dsn: str) -> None:
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            for method, path in (
                ("GET", "/v1/models"), ("GET", "/v1/models/secret-name"), ("GET", "/v1/responses/secret-id"),
                ("DELETE", "/v1/responses/secret-id"), ("PUT", "/v1/responses"), ("GET", "/v1/secret-path"),
                ("SECRETVERB", "/v1/models"), ("GET", "/healthz"), ("GET", "/metrics"), ("GET", "/nowhere"),
            ):  # fmt: skip
                await service.client.request(method, f"{path}?secret=query")
        seen = {(span.name, span.attributes["http.response.status_code"]) for span in collector.spans}

    assert seen == {
        *(("GET /v1/models", 200), ("GET /v1/models/<path:name>", 200), ("GET /v1/responses/<response_id>", 404)),
        *(("DELETE /v1/responses/<response_id>", 404), ("PUT", 405), ("GET", 404), ("HTTP", 405)),
    }
    assert b"secret" not in b"".join(collector.bodies).lower()


async def test_no_word_of_a_prompt_an_output_a_key_or_an_address_is_in_a_span(postgres_dsn: str) -> None:
    word = "canary-of-a-client"
    asked = {
        "input": f"{word} input",
        "instructions": f"{word} instructions",
        "metadata": {f"{word}-key": f"{word}-value"},
        "user": f"{word}-user",
        "safety_identifier": f"{word}-safety",
        "prompt_cache_key": f"{word}-cache",
    }
    upstream = {"api_key": "sk-upstream-canary", "headers": {"x-team": "header-canary"}}
    async with open_collector() as collector:
        overrides = {"auth": {"mode": "keys"}, "upstreams": {"simulator": upstream}}
        async with traced(postgres_dsn, collector, **overrides) as service:
            key = await PostgresKeyStore(service.pool).create_key("owner-canary")
            headers = {"authorization": f"Bearer {key}", "user-agent": word, "x-request-id": word, "cookie": word}
            answers = []
            for model in ("parrot", "error-500", "error-400", "echo-2-cut-each", "echo-2-garbage", "toolsbad-2"):
                for stream in (False, True):
                    body = {"model": model, **asked, "stream": stream}
                    answers.append(await service.client.post("/v1/responses", json=body, headers=headers))
            await service.client.post("/v1/responses", json={"model": "parrot"}, headers={"authorization": word})
            secrets = [word, "canary", key, key[:15], service.simulator.origin.removeprefix("http://"), "Traceback"]
        told = b"".join(collector.bodies)

    assert word in answers[0].text, "the output said it"
    assert len(collector.spans) == 2 * len(answers) + 1
    assert [secret for secret in secrets if secret.encode() in told] == []
    print(f"{len(collector.spans)} spans, {len(told)} bytes: no canary")


async def test_a_collector_that_is_not_there_changes_nothing_for_requests_and_holds_up_no_shutdown(
    postgres_dsn: str,
) -> None:
    async with open_collector() as collector:
        gone = collector.endpoint
    left_at = 0.0
    overrides = {"tracing": {"endpoint": gone}, "limits": {"tracing_flush_s": FLUSH_S}}
    async with open_service(postgres_dsn, overrides) as service:
        for _ in range(5):
            answer = await service.client.post("/v1/responses", json=ask("echo-2"))
            assert answer.status_code == 200
        left_at = trio.current_time()
    took_s = trio.current_time() - left_at

    assert took_s < FLUSH_S + 2.0
    print(f"ended {took_s:.2f} s after the last request; {FLUSH_S} s were allowed for the spans")


async def test_a_silent_collector_holds_a_bounded_queue_and_nobody_up(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = 8
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", str(queue))
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    async with open_collector(answering=False) as collector:
        async with traced(postgres_dsn, collector) as service:
            first = await service.client.get("/v1/models")
            for _ in range(3):
                await service.client.get("/v1/models")
            with trio.fail_after(WAIT_S):
                await collector.wait_asked()
            for _ in range(40):
                answer = await service.client.get("/v1/models")
                assert answer.status_code == first.status_code == 200
            threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]
            collector.answering.set()
        told = len(collector.spans)

    assert len(threads) == 1
    assert told <= 4 + queue + 1, "one batch on its way, the queue, and the last request, whose span may end later"
    print(f"44 requests, {told} spans told, the rest dropped; threads of the SDK: {threads}")


async def test_a_silent_collector_is_given_up_at_the_end_within_the_bound(postgres_dsn: str) -> None:
    async with open_collector(answering=False) as collector:
        async with traced(postgres_dsn, collector, limits={"tracing_flush_s": FLUSH_S}) as service:
            await service.client.post("/v1/responses", json=ask("echo-2"))
            left_at = trio.current_time()
        took_s = trio.current_time() - left_at
        collector.answering.set()

    assert FLUSH_S <= took_s < FLUSH_S + 2.0
    assert len(collector.bodies) == 1, "it was asked, and did not answer"


async def test_the_variables_of_opentelemetry_hold(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "answers")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=secret")
    async with open_collector() as collector:
        async with traced(postgres_dsn, collector) as service:
            await service.client.get("/v1/models")
        (span,) = collector.spans

    assert span.resource["service.name"] == "answers"
    assert span.resource["deployment.environment.name"] == "test"
    assert [headers["x-collector-key"] for _, headers in collector.requests] == ["secret"]


async def test_an_sdk_that_is_switched_off_leaves_the_clients_trace_alone(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with open_collector() as collector, traced(postgres_dsn, collector) as service:
        await service.client.post("/v1/responses", json=ask("echo-1"), headers=SAMPLED)
        passed_on = sent_upstream(service)
        await service.client.post("/v1/responses", json=ask("echo-1"))
        nothing = sent_upstream(service)

    assert (passed_on, nothing, collector.bodies) == (SAMPLED, {}, [])


@pytest.mark.slow
async def test_what_the_exporter_says_is_in_our_log_without_a_secret_and_the_process_ends_in_time(
    postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "sk-header-canary malformed,authorization=sk-value-canary")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "sk-timeout-canary")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    async with open_collector() as collector:
        gone = collector.endpoint
    limits = attrs.evolve(QUICK, tracing_flush_s=FLUSH_S)
    async with (
        open_world(postgres_dsn, tmp_path, limits, tracing={"endpoint": gone}) as (path, _, _),
        open_server(path) as server,
        open_http(server) as http,
    ):
        answer = await http.post("/v1/responses", json=ask("echo-1"))
        await server.wait_logged("tracing_fault")
        await http.aclose()
        with trio.fail_after(QUICK.shutdown_grace_s + FLUSH_S + WAIT_S):
            status = await server.end_by(signal.SIGTERM)
    faults = [line for line in server.log if line["event"] == "tracing_fault"]

    assert (answer.status_code, status) == (200, 0)
    assert 1 <= len(faults) <= 2, "not one for every try"
    assert "canary" not in json.dumps(server.log), "every line was JSON, and none held a value"


async def test_a_refusal_of_the_collector_is_logged_with_its_status(
    postgres_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_collector() as collector:
        collector.status = 404
        async with traced(postgres_dsn, collector) as service:
            await service.client.get("/v1/models")

    assert re.search(r"tracing_fault .*numbers=\[404\]", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))


@pytest.mark.slow
async def test_the_collector_that_the_guide_shows_prints_the_spans(postgres_dsn: str) -> None:
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "monitor.md"
    (program,) = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", program.replace("4318", port)]
    printer = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(WAIT_S):
            await wait_accepting(int(port))
            overrides = {"tracing": {"endpoint": f"http://127.0.0.1:{port}"}}
            async with open_service(postgres_dsn, overrides) as service:
                await service.client.post("/v1/responses", json=ask("echo-1"), headers=SAMPLED)
            printer.terminate()
            assert printer.stdout is not None
            printed = b"".join([chunk async for chunk in printer.stdout]).decode().splitlines()
    finally:
        printer.kill()
        with trio.CancelScope(shield=True):
            await printer.wait()

    assert [(line.split()[0], line.split(" s ")[1]) for line in printed] == [
        (TRACE, "chat echo-1"),
        (TRACE, "POST /v1/responses"),
    ]


async def wait_accepting(port: int) -> None:
    """Return when somebody takes connections on *port*; the caller bounds it."""
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        except OSError:
            await trio.lowlevel.checkpoint()
        else:
            return
