"""What clients find of a response that has come of age, and that a running server prunes by itself."""

from collections.abc import Mapping
from uuid import uuid4

import httpx
import pytest
import trio
from tests.conformance.conftest import CALL_S, Clock
from tests.http.conftest import ask
from tests.http.test_idempotency import id_of
from tests.http.test_idempotency import post as send

from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.domain.retention import RetentionKind, retention_s
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.pool import open_pool
from dwctl_trio.postgres.retention import PostgresRetention
from dwctl_trio.testing.service import Service, open_service

OLD_ROW = """
insert into requests (id, owner, surface, model, upstream, upstream_model, service_tier, state, response_status,
    created_at, started_at, finished_at)
select gen_random_uuid(), 'blue', 'responses', 'm', 'u', 'm', 'auto', 'completed', 200, t, t, t
from (select dwctl_now() - interval '91 days' as t) as old
"""


async def post(service: Service, *, stream: bool) -> httpx.Response:
    return await send(service, ask("echo-3", stream=stream), key="k")


async def come_of_age(dsn: str, kind: RetentionKind) -> None:
    """Prune as if everything had the age at which *kind* goes."""
    clock = Clock(offset_s=retention_s(kind, DEFAULT_LIMITS) + 60)
    async with open_guest_loop() as loop:
        opened = open_pool(loop, dsn, connections_max=1, wait_s=CALL_S, call_s=CALL_S, setup=clock.set)
        async with opened as pool:
            retention = PostgresRetention(pool, DEFAULT_LIMITS)
            assert (await retention.prune(kind, 100)).count == 1


def told(answer: httpx.Response) -> tuple[int, Mapping[str, object]]:
    return answer.status_code, answer.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_without_its_events_is_still_there_and_only_its_stream_cannot_be_had_again(
    postgres_dsn: str, stream: bool
) -> None:
    async with open_service(postgres_dsn) as service:
        first = await post(service, stream=stream)
        url = f"/v1/responses/{id_of(first)}"
        before = [(await service.client.get(path)).content for path in (url, f"{url}/steps")]
        await come_of_age(postgres_dsn, RetentionKind.EVENTS)

        assert [(await service.client.get(path)).content for path in (url, f"{url}/steps")] == before
        again = await post(service, stream=stream)
        if stream:
            status, error = told(again)
            assert (status, error["code"]) == (409, "idempotency_replay_unavailable")
            assert f"too old: read the response with GET {url}" in str(error["message"])
        else:
            assert again.content == first.content


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_without_its_body_is_for_clients_one_that_was_deleted(postgres_dsn: str, stream: bool) -> None:
    async with open_service(postgres_dsn) as service:
        name = id_of(await post(service, stream=stream))
        await come_of_age(postgres_dsn, RetentionKind.BODIES)

        unknown = response_id_text(uuid4())
        for path in ("", "/steps"):
            gone = await service.client.get(f"/v1/responses/{name}{path}")
            never = await service.client.get(f"/v1/responses/{unknown}{path}")
            assert gone.status_code == 404
            assert gone.text.replace(name, "") == never.text.replace(unknown, "")
        status, error = told(await post(service, stream=stream))
        assert (status, error["code"]) == (409, "idempotency_replay_unavailable")
        assert "or is too old" in str(error["message"])


@pytest.mark.slow
async def test_a_key_whose_row_has_gone_is_free_again(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        first = await post(service, stream=False)
        await come_of_age(postgres_dsn, RetentionKind.ROWS)

        second = await post(service, stream=False)

        assert second.status_code == 200
        assert id_of(second) != id_of(first)


@pytest.mark.slow
async def test_a_server_prunes_by_itself_and_counts_it(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn, {"limits": {"retention_interval_s": 0.1}}) as service:
        await service.pool.execute(OLD_ROW)
        with trio.fail_after(CALL_S):
            while await service.pool.fetchval("select count(*) from requests"):  # noqa: ASYNC110 - another process says when
                await trio.sleep(0.01)
            while 'dwctl_pruned_rows_total{kind="rows"} 1.0' not in (await service.client.get("/metrics")).text:  # noqa: ASYNC110 - the same
                await trio.sleep(0.01)
