"""What every answer carries, and what the small endpoints say."""

import re

import pytest
import trio
from tests.http.conftest import WAIT_S, as_request, ask, error_of, open_raw, read_answer

from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import Service, open_service

pytestmark = pytest.mark.usefixtures("each_server_at_length")

MADE_ID = re.compile(r"req_[0-9a-f]{32}")
UNKNOWN_ID = "resp_00000000-0000-0000-0000-000000000000"


async def test_a_stream_has_the_headers_that_proxies_and_browsers_need(service: Service) -> None:
    answer = await service.client.post("/v1/responses", json=ask("echo-2", stream=True))

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    assert "content-encoding" not in answer.headers
    assert "server" not in answer.headers


async def test_every_answer_has_a_request_id_of_its_own(service: Service) -> None:
    answers = [
        await service.client.get("/healthz"),
        await service.client.get("/readyz"),
        await service.client.get("/v1/models"),
        await service.client.get("/nowhere"),
        await service.client.put("/v1/responses"),
        await service.client.get(f"/v1/responses/{UNKNOWN_ID}"),
        await service.client.post("/v1/responses", json=ask("echo-1")),
        await service.client.post("/v1/responses", json=ask("echo-1", stream=True)),
        await service.client.post("/v1/responses", json=ask("error-500")),
        await service.client.post("/v1/responses", json=ask("error-500", stream=True)),
        await service.client.post("/v1/responses", content=b"{"),
    ]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(MADE_ID.fullmatch(request_id) for request_id in ids)
    assert len(set(ids)) == len(ids)


async def test_a_plain_request_id_comes_back_and_another_does_not(service: Service) -> None:
    for sent in ("abc", "a-b_c.d:e", "x" * 128, "0"):
        answer = await service.client.get("/healthz", headers={"x-request-id": sent})
        assert answer.headers["x-request-id"] == sent
    for sent in ("", "x" * 129, "a b", "a\tb", "<script>", "é", "a,b"):
        answer = await service.client.get("/healthz", headers={"x-request-id": sent.encode()})
        assert MADE_ID.fullmatch(answer.headers["x-request-id"]), sent


async def test_a_request_id_comes_back_with_streams_and_refusals(service: Service) -> None:
    for body in (ask("echo-1", stream=True), ask("error-500", stream=True), ask("echo-1"), {"model": 1}):
        answer = await service.client.post("/v1/responses", json=body, headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"


async def test_an_unknown_url_is_404_and_a_wrong_method_405(service: Service) -> None:
    for method, path, status, code in (
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/responses/", 404, "not_found"),
        ("POST", "/v1//responses", 404, "not_found"),
        ("GET", "/" + "x" * 5000, 404, "not_found"),
        ("GET", "/%00%ff", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/responses", 405, "method_not_allowed"),
        ("PATCH", f"/v1/responses/{UNKNOWN_ID}", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/responses", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ):
        answer = await service.client.request(method, service.url + path)
        assert (answer.status_code, error_of(answer)["code"]) == (status, code), (method, path[:40])


async def test_a_405_lists_the_methods_that_are_allowed(service: Service) -> None:
    for method, path, allowed in (
        ("PUT", "/v1/responses", "GET, HEAD, POST"),
        ("PATCH", f"/v1/responses/{UNKNOWN_ID}", "DELETE, GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
    ):
        answer = await service.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert error_of(answer)["message"] == f"{method} is not allowed on {path}; allowed: {allowed}."


async def test_a_url_that_does_not_exist_is_404_also_without_a_key(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        unknown = await service.client.get("/v1/nothing")
        known = await service.client.get("/v1/models")

    assert (unknown.status_code, known.status_code) == (404, 401), "as OpenAI answers"


@pytest.mark.slow
async def test_the_flag_stream_of_a_get_is_true_or_false_and_nothing_else(service: Service) -> None:
    made = (await service.client.post("/v1/responses", json=ask("echo-1"))).json()["id"]

    for word, status, code in (
        *(("false", 200, None), ("False", 200, None), ("0", 200, None), ("", 200, None)),
        *(("true", 200, None), ("True", 200, None), ("1", 200, None)),
        *(("no", 400, "invalid_value"), ("yes", 400, "invalid_value"), ("\x00", 400, "invalid_value")),
    ):
        answer = await service.client.get(f"/v1/responses/{made}", params={"stream": word})
        assert answer.status_code == status, word
        if code is not None:
            assert (error_of(answer)["param"], error_of(answer)["code"]) == ("stream", code), word
        else:
            is_stream = answer.headers["content-type"].startswith("text/event-stream")
            assert is_stream == (word.lower() in {"true", "1"}), word


async def test_an_id_that_is_none_of_ours_is_404_for_get_and_delete(service: Service) -> None:
    for name in (UNKNOWN_ID, "resp_1", "x", "resp_", UNKNOWN_ID.upper(), "resp_" + "0" * 5000, "%00", "%ff", "🙂"):
        for method in ("GET", "DELETE"):
            answer = await service.client.request(method, f"/v1/responses/{name}")
            error = error_of(answer)
            assert (answer.status_code, error["type"]) == (404, "invalid_request_error"), (method, name[:40])


async def test_a_deleted_response_is_gone(service: Service) -> None:
    made = (await service.client.post("/v1/responses", json=ask("echo-1"))).json()["id"]

    deleted = await service.client.delete(f"/v1/responses/{made}")
    again = await service.client.delete(f"/v1/responses/{made}")
    read = await service.client.get(f"/v1/responses/{made}")

    assert (deleted.status_code, deleted.json()) == (200, {"id": made, "object": "response", "deleted": True})
    assert (again.status_code, read.status_code) == (404, 404)


async def test_head_answers_like_get_without_a_body(service: Service) -> None:
    async with open_raw(service) as client:
        await client.send(b"HEAD /healthz HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        with trio.fail_after(WAIT_S):
            answer = read_answer(await client.read_to_end())

    assert (answer.status_code, answer.content) == (200, b"")


async def test_the_models_of_the_configuration_are_listed(postgres_dsn: str) -> None:
    models = [{"name": name, "upstream": "simulator"} for name in ("gpt-4o", "org/model-7b", "*")]
    async with open_service(postgres_dsn, {"models": models}) as service:
        listed = (await service.client.get("/v1/models")).json()
        one = (await service.client.get("/v1/models/org/model-7b")).json()
        other = await service.client.get("/v1/models/anything")

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["gpt-4o", "org/model-7b"]
    assert one == {"id": "org/model-7b", "object": "model", "created": 0, "owned_by": "simulator"}
    assert other.json()["id"] == "anything"


async def test_a_model_that_no_route_serves_is_404(postgres_dsn: str) -> None:
    models = [{"name": "gpt-4o", "upstream": "simulator"}]
    async with open_service(postgres_dsn, {"models": models}) as service:
        answer = await service.client.get("/v1/models/other")

    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


async def test_health_and_readiness_need_no_key(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        for path in ("/healthz", "/readyz"):
            answer = await service.client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.slow
async def test_without_a_live_key_everything_else_is_401(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        key = await PostgresKeyStore(service.pool).create_key("alice")
        wrong = (
            b"", b"Bearer",
            f"Basic {key}".encode(), key.encode(), f"Bearer {key}x".encode(), f"Bearer {key[:-1]}".encode(),
            f"Bearer {key.upper()}".encode(), b"Bearer " + b"x" * 5000, f"Bearer {key} {key}".encode(),
            b"Bearer \xff\xfe", "Bearer é".encode(),
        )  # fmt: skip
        for headers in ({}, *({"authorization": authorization} for authorization in wrong)):
            for method, path in (
                ("POST", "/v1/responses"),
                ("GET", f"/v1/responses/{UNKNOWN_ID}"),
                ("DELETE", f"/v1/responses/{UNKNOWN_ID}"),
                ("GET", "/v1/models"),
                ("GET", "/v1/models/x"),
            ):
                answer = await service.client.request(method, path, headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key"), headers
                assert key[12:] not in answer.text
        assert await service.pool.fetchval("select count(*) from requests") == 0


async def test_a_live_key_lets_its_owner_in_and_nobody_else_to_its_responses(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}}) as service:
        keys = PostgresKeyStore(service.pool)
        alice, alice_too, bob = [
            {"authorization": f"Bearer {await keys.create_key(owner)}"} for owner in ("alice", "alice", "bob")
        ]
        made = await service.client.post("/v1/responses", json=ask("echo-1"), headers=alice)
        path = f"/v1/responses/{made.json()['id']}"
        own = await service.client.get(path, headers=alice_too)
        foreign = await service.client.get(path, headers=bob)
        unknown = await service.client.get(f"/v1/responses/{UNKNOWN_ID}", headers=bob)
        foreign_delete = await service.client.delete(path, headers=bob)
        lower_case = await service.client.get(
            path, headers={"authorization": alice["authorization"].replace("Bearer", "bearer")}
        )

    assert (made.status_code, own.json(), lower_case.status_code) == (200, made.json(), 200)
    assert (foreign.status_code, foreign_delete.status_code) == (404, 404)
    assert error_of(foreign)["message"].replace(made.json()["id"], UNKNOWN_ID) == error_of(unknown)["message"]


@pytest.mark.slow
async def test_a_revoked_key_is_refused_once_the_cache_has_forgotten_it(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}, "limits": {"key_cache_s": 0.2}}) as service:
        keys = PostgresKeyStore(service.pool)
        key = await keys.create_key("alice")
        headers = {"authorization": f"Bearer {key}"}
        assert (await service.client.get("/v1/models", headers=headers)).status_code == 200

        await keys.revoke_key(key[:15])

        with trio.fail_after(0.2 + 1.0):
            while (await service.client.get("/v1/models", headers=headers)).status_code == 200:
                pass


async def test_a_key_that_was_unknown_is_known_once_it_is_made(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"auth": {"mode": "keys"}, "limits": {"key_cache_s": 0.0}}) as service:
        first = await service.client.get("/v1/models", headers={"authorization": "Bearer sk-dwctl-unknown"})
        key = await PostgresKeyStore(service.pool).create_key("alice")
        second = await service.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})

    assert (first.status_code, second.status_code) == (401, 200)


@pytest.mark.slow
async def test_the_keep_alive_comment_is_one_line_between_frames(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"keep_alive_s": 0.05}}) as service, open_raw(service) as client:
        await client.send(as_request(ask("pause-1-2", key="quiet", stream=True)))
        with trio.fail_after(WAIT_S):
            await client.read_until(b": ping\n", 3)
            service.simulator.resume("quiet")
            received = await client.read_until(b"data: [DONE]")

    assert b": ping\n\r\n" in received, "a chunk of its own"
    assert b": ping\n\n" not in received
