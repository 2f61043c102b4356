"""Conversations at the running server's bounds: what is read for a request is held against it, and let go with it."""

from typing import Any

import httpx
import pytest
from tests.http.conftest import DELTA, as_request, ask, assert_serves, error_of, open_raw
from tests.http.queued import wait_ended
from tests.http.tenants import UNKNOWN_ID

from dwctl_trio.protocol.parameters import INCLUDES, accepted
from dwctl_trio.testing.service import Service, open_service

LARGE = 100 * 1024
BOUNDS = {"request_body_bytes": LARGE + 4096, "request_bodies_bytes": LARGE + LARGE // 2}
"""One conversation with a large turn has room, two have not."""
KNOWN = accepted(INCLUDES)


async def post(service: Service, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await service.client.post("/v1/responses", json=body, headers=headers)


@pytest.mark.slow
async def test_a_conversation_counts_to_what_the_process_holds_until_its_request_has_ended(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": BOUNDS}) as service, open_raw(service) as client:
        first = (await post(service, {"model": "echo-2", "input": "x" * LARGE})).json()
        going_on = {"previous_response_id": first["id"]}
        await client.send(as_request(ask("echo-4-pause-2", key="held", stream=True, **going_on)))
        await client.read_until(DELTA)

        refused = [
            await post(service, ask("echo-2", **going_on)),
            await service.client.post("/v1/responses/input_tokens", json={"model": "echo-2", **going_on}),
            await service.client.get(f"/v1/responses/{first['id']}/input_items"),
        ]
        await assert_serves(service)
        service.simulator.resume("held")
        await client.read_until(b"[DONE]")
        await client.hang_up()
        again = await post(service, ask("echo-2", **going_on))
        shown = await service.client.get(f"/v1/responses/{first['id']}/input_items")

    for answer in refused:
        assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
        assert int(answer.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in (again, shown)] == [200, 200]


@pytest.mark.slow
async def test_a_repeat_with_a_key_gets_the_response_of_the_first_in_a_conversation_too(service: Service) -> None:
    first = (await post(service, ask("echo-2"))).json()
    for fields in ({}, {"stream": True}, {"background": True}, {"service_tier": "flex"}):
        key = {"idempotency-key": f"key-{'-'.join(fields)}"}
        body = ask("echo-2", previous_response_id=first["id"], **fields)
        answers = [await post(service, body, **key) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200], fields
        assert answers[1].headers["idempotent-replayed"] == "true"
    assert await service.pool.fetchval("select count(*) from requests where previous_response_id is not null") == 4


PATHS: list[dict[str, Any]] = [{}, {"stream": True}, {"background": True}, {"service_tier": "flex"}]


@pytest.mark.parametrize("fields", PATHS, ids=["blocking", "stream", "background", "flex"])
async def test_a_repeat_needs_no_more_what_the_first_went_on_with(service: Service, fields: dict[str, Any]) -> None:
    key = {"idempotency-key": "k"}
    before = (await post(service, ask("echo-2"))).json()["id"]
    body = ask("echo-2", previous_response_id=before, **fields)
    first = await post(service, body, **key)
    made = (await service.client.get("/v1/responses?limit=1")).json()["data"][0]["id"]
    await wait_ended(service, made)
    assert (await service.client.delete(f"/v1/responses/{before}")).status_code == 200

    again = await post(service, body, **key)
    other = await post(service, body | {"input": "other"}, **key)
    new = await post(service, body, **{"idempotency-key": "new"})
    await service.client.delete(f"/v1/responses/{made}")
    released = await post(service, body, **key)

    assert (first.status_code, again.status_code) == (200, 200)
    assert (again.headers["idempotent-replayed"], again.headers["x-response-id"]) == ("true", made)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    for answer in (new, released):
        assert (answer.status_code, error_of(answer)["code"]) == (400, "previous_response_not_found")


async def test_a_count_with_a_key_is_not_made_twice_whatever_became_of_its_conversation(service: Service) -> None:
    before = (await post(service, ask("echo-2"))).json()["id"]
    body = {"model": "echo-2", "input": "hello", "previous_response_id": before}
    url, key = "/v1/responses/input_tokens", {"idempotency-key": "k"}
    first = await service.client.post(url, json=body, headers=key)
    await service.client.delete(f"/v1/responses/{before}")

    again = await service.client.post(url, json=body, headers=key)
    other = await service.client.post(url, json=body | {"input": "other"}, headers=key)
    unkeyed = await service.client.post(url, json=body)

    assert first.status_code == 200
    assert (again.status_code, error_of(again)["code"]) == (409, "idempotency_replay_unavailable")
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    assert (unkeyed.status_code, error_of(unkeyed)["code"]) == (400, "previous_response_not_found")


async def test_a_request_may_go_on_without_any_input(service: Service) -> None:
    first = (await post(service, ask("echo-2"))).json()
    body = {"model": "echo-2", "previous_response_id": first["id"]}
    answers = [await post(service, {**body, **fields}) for fields in ({}, {"input": []}, {"input": None})]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [one["role"] for one in service.simulator.requests[-1].body["messages"]] == ["user", "assistant"]


async def test_an_item_is_referred_to_once_by_a_request(service: Service) -> None:
    first = (await post(service, ask("echo-2"))).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    question = {"role": "user", "content": "and?"}
    refused = await post(service, ask("echo-2", input=[question, reference, question, {"id": reference["id"]}]))
    accepted = await post(service, ask("echo-2", input=[question, reference]))

    assert (refused.status_code, error_of(refused)["param"]) == (400, "input[3].id")
    assert "'input[1]' refers to it already" in error_of(refused)["message"]
    assert accepted.status_code == 200


async def test_a_conversation_and_what_is_referred_to_are_bounded_by_their_items(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"conversation_items": 3}}) as service:
        first = (await post(service, ask("echo-2"))).json()
        second = (await post(service, ask("echo-2", previous_response_id=first["id"]))).json()
        references = [{"type": "item_reference", "id": one["output"][0]["id"]} for one in (first, second)]
        question = {"role": "user", "content": "and?"}
        refused = [
            await post(service, ask("echo-2", previous_response_id=second["id"])),
            await post(service, ask("echo-2", previous_response_id=first["id"], input=[question, question])),
            await post(service, ask("echo-2", input=references)),
        ]
        shown = await service.client.get(f"/v1/responses/{second['id']}/input_items")

    assert second["status"] == "completed", "two items and one are not too many"
    for answer in refused:
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (400, "conversation_too_long")
        assert "3 items ('conversation_items')" in error["message"]
    assert len(shown.json()["data"]) == 1, "as far as it is read"


async def test_lists_take_a_place_as_responses_do(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"owner_responses": 1}}) as service, open_raw(service) as client:
        await client.send(as_request(ask("echo-4-pause-2", key="held", stream=True)))
        await client.read_until(DELTA)
        response_id = await service.pool.fetchval("select id from requests")
        urls = ("/v1/responses", f"/v1/responses/resp_{response_id}/input_items")
        answers = [await service.client.get(url) for url in urls]
        service.simulator.resume("held")
        await client.read_until(b"[DONE]")

    assert [answer.status_code for answer in answers] == [429, 429]


async def test_a_response_that_cannot_be_read_hides_no_other_from_the_list(service: Service) -> None:
    newer = '{"model": "echo-2", "input": "hi", "temperature": "hot"}'
    async with open_raw(service) as client:
        names = [(await post(service, ask("echo-2"))).json()["id"]]
        await client.send(as_request(ask("echo-4-pause-2", key="held", stream=True)))
        await client.read_until(DELTA)
        names.append("resp_" + str(await service.pool.fetchval("select id from requests where state = 'processing'")))
        await service.pool.execute("alter table requests disable trigger user")
        await service.pool.execute(f"update requests set request = '{newer}' where state = 'processing'")
        names.append((await post(service, ask("echo-2"))).json()["id"])
        alone = await service.client.get(f"/v1/responses/{names[1]}")
        pages: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        for _ in names:
            page = (await service.client.get("/v1/responses", params={"limit": 1, **after})).json()
            after = {"after": page["last_id"]}
            pages.append(page)
        service.simulator.resume("held")
        await client.read_until(b"[DONE]")

    assert alone.status_code == 500
    assert [page["data"][0]["id"] for page in pages] == names[::-1]
    assert [page["has_more"] for page in pages] == [True, True, False]
    unreadable = pages[1]["data"][0]
    assert (unreadable["status"], unreadable["error"], unreadable["output"]) == ("in_progress", None, [])


@pytest.mark.parametrize("path", ["", f"/{UNKNOWN_ID}", f"/{UNKNOWN_ID}/input_items"])
async def test_what_nothing_can_include_is_refused_as_a_post_does(service: Service, path: str) -> None:
    for query in ("include[]=usage", "include=usage", "include[0]=usage"):
        answer = await service.client.get(f"/v1/responses{path}?{query}")
        assert (answer.status_code, error_of(answer)["param"]) == (400, "include[0]"), query
    known = "&".join(f"include[]={name}" for name in KNOWN)
    answer = await service.client.get(f"/v1/responses?{known}&include[]=usage")
    assert error_of(answer)["param"] == f"include[{len(KNOWN)}]"
    assert (await service.client.get(f"/v1/responses?{known}")).status_code == 200
