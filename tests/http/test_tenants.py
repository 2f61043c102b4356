"""Two tenants: whatever the one may name of the other's answers as if it had never been."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from urllib.parse import unquote

import attrs
import httpx
import pytest
import trio
from tests.http.conftest import ask, error_of
from tests.http.server_tools import open_tool_world
from tests.http.tenants import (
    MALFORMED_IDS,
    UNKNOWN_ID,
    Visit,
    assert_not_found,
    authorize,
    dump_database,
    open_responses,
    read_rows,
    told,
    visits_of,
)
from werkzeug.routing import Map, Rule

from dwctl_trio.app import open_api
from dwctl_trio.domain.errors import AuthenticationFailed
from dwctl_trio.domain.limits import DEFAULT_LIMITS
from dwctl_trio.http.application import build_application
from dwctl_trio.http.authentication import Authenticator
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.protocol.parameters import CREATE_PARAMETERS, names_below
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_keys import MemoryKeyStore
from dwctl_trio.testing.service import Service

KEYS = {"auth": {"mode": "keys"}}
QUERIES = (
    "",
    "?stream=true",
    "?stream=false",
    "?starting_after=1",
    "?include[]=reasoning.encrypted_content",
    "?stream=true&starting_after=0",
    "?stream=true&starting_after=99999999",
    "?stream=true&include_obfuscation=false",
)
QUERY_NAMES = ("after", "before", "cursor", "id", "response_id", "previous_response_id", "conversation")
"""Names under which a list or a search might take an id."""
BODY_PARAMETERS = sorted({*names_below(CREATE_PARAMETERS, ""), "id", "response_id", "conversation_id", "parent_id"})


@attrs.frozen(kw_only=True)
class World:
    """A server with keys, two tenants, and the first one's responses."""

    service: Service
    visits: list[Visit]
    alice: dict[str, str]
    bob: dict[str, str]
    made: dict[str, str]
    """Alice's responses, by state."""


@pytest.fixture
async def world(postgres_dsn: str) -> AsyncIterator[World]:
    async with open_tool_world(postgres_dsn, **KEYS) as tools:
        service = tools.service
        alice, bob = await authorize(service, "alice", "bob")
        visits = await find_visits(service)
        async with open_responses(service, alice) as made:
            yield World(service=service, visits=visits, alice=alice, bob=bob, made=made)


async def find_visits(service: Service) -> list[Visit]:
    """All there is to visit of a server like *service*'s."""
    async with open_api(service.config, service.pool) as (api, store):
        return visits_of(build_application(api, store).url_map.iter_rules())


async def find_differences(
    client: httpx.AsyncClient, visits: Iterable[Visit], headers: dict[str, str], made: dict[str, str]
) -> list[str]:
    """Where a response of another owner answers otherwise than one that never was."""
    found = []
    for visit in visits:
        for query in QUERIES:
            unknown = await visit.make(client, UNKNOWN_ID, headers, query)
            for state, name in made.items():
                foreign = await visit.make(client, name, headers, query)
                if told(foreign, name) != told(unknown, UNKNOWN_ID):
                    found.append(f"{visit.method} {visit.rule}{query} {state}: {foreign.status_code}")
    return found


@pytest.mark.slow
async def test_the_others_responses_answer_like_unknown_ones_on_every_route_and_stay_as_they_are(world: World) -> None:
    owned = [visit for visit in world.visits if visit.is_owned]
    before = await read_rows(world.service)

    differences = await find_differences(world.service.client, owned, world.bob, world.made)

    assert differences == []
    for visit in owned:
        for name in (UNKNOWN_ID, *world.made.values()):
            assert_not_found(await visit.make(world.service.client, name, world.bob))
    assert await read_rows(world.service) == before
    print(f"{len(owned)} routes, {len(world.made)} states, {len(QUERIES)} queries: all 404 and alike")
    assert {(visit.method, visit.rule) for visit in owned} >= {
        ("GET", "/v1/responses/<response_id>"),
        ("HEAD", "/v1/responses/<response_id>"),
        ("DELETE", "/v1/responses/<response_id>"),
        ("POST", "/v1/responses/<response_id>/cancel"),
        ("GET", "/v1/responses/<response_id>/steps"),
        ("HEAD", "/v1/responses/<response_id>/steps"),
    }


@pytest.mark.slow
async def test_malformed_ids_answer_like_unknown_ones_on_every_route(world: World) -> None:
    for visit in world.visits:
        if not visit.is_owned:
            continue
        unknown = told(await visit.make(world.service.client, UNKNOWN_ID, world.bob), UNKNOWN_ID).without_length()
        for name in MALFORMED_IDS:
            answer = await visit.make(world.service.client, name, world.bob)
            assert told(answer, f"'{unquote(name)}'", "'…'").without_length() == attrs.evolve(
                unknown, body=unknown.body.replace("'<id>'", "<id>")
            ), (visit, name[:60])


@pytest.mark.slow
async def test_deleted_responses_and_those_not_stored_answer_like_unknown_ones_to_their_owner(world: World) -> None:
    gone = {state: name for state, name in world.made.items() if state == "deleted" or state.startswith("not stored")}
    owned = [visit for visit in world.visits if visit.is_owned]

    differences = await find_differences(world.service.client, owned, world.alice, gone)

    assert len(gone) == 6
    assert differences == []


async def test_the_owner_reads_what_the_other_may_not(world: World) -> None:
    wire = {"completed": "completed", "incomplete": "incomplete", "failed with output": "failed"}
    wire |= {"failed at once": "failed", "cancelled": "cancelled", "running": "in_progress"}
    wire |= {"completed with tools": "completed"}

    read, steps = {}, {}
    for state in wire:
        answer = await world.service.client.get(f"/v1/responses/{world.made[state]}", headers=world.alice)
        read[state] = answer.json()["status"]
        listed = await world.service.client.get(f"/v1/responses/{world.made[state]}/steps", headers=world.alice)
        steps[state] = [step["type"] for step in listed.json()["data"]]

    assert read == wire
    agent = ["model_call", "tool_call", "model_call"]
    assert steps.pop("completed with tools") == ["model_call", "tool_call", *agent, "model_call"]
    assert all(types == ["model_call"] for types in steps.values())


def shapes_of(name: str) -> list[object]:
    """How a body might hold an id."""
    item = name.replace("resp_", "msg_").replace("-", "") + "0"
    return [name, {"id": name}, [name], [{"type": "item_reference", "id": item}]]


@pytest.mark.slow
async def test_no_parameter_of_a_body_tells_the_others_ids_from_unknown_ones(world: World) -> None:
    answers = 0
    for parameter in BODY_PARAMETERS:
        states = world.made if parameter == "previous_response_id" else ("completed", "running")
        for position, unknown in enumerate(shapes_of(UNKNOWN_ID)):
            body = ask("echo-1") | {parameter: unknown}
            expected = await world.service.client.post("/v1/responses", json=body, headers=world.bob)
            for state in states:
                name = world.made[state]
                body = ask("echo-1") | {parameter: shapes_of(name)[position]}
                answer = await world.service.client.post("/v1/responses", json=body, headers=world.bob)
                answers += 1
                assert without_ids(answer, name) == without_ids(expected, UNKNOWN_ID), (parameter, state)
    print(f"{len(BODY_PARAMETERS)} parameters, {answers} answers to the other's ids, alike")


def without_ids(answer: httpx.Response, name: str) -> tuple[int, str]:
    """Status and body without all ids and times."""
    body = told(answer, name).body
    body = re.sub(r"(resp|msg)_[0-9a-f-]+", "<id>", body)
    return answer.status_code, re.sub(r'"(created|completed)_at":\d+', "", body)


@pytest.mark.slow
async def test_no_query_and_no_header_tells_the_others_ids_from_unknown_ones(world: World) -> None:
    plain = [visit for visit in world.visits if not visit.arguments and visit.method == "GET" and not visit.is_public]
    for visit in plain:
        for query in QUERY_NAMES:
            unknown = await visit.make(world.service.client, "", world.bob, f"?{query}={UNKNOWN_ID}")
            for name in (world.made["completed"], world.made["running"]):
                foreign = await visit.make(world.service.client, "", world.bob, f"?{query}={name}")
                assert told(foreign, name) == told(unknown, UNKNOWN_ID), (visit, query)


@pytest.mark.slow
async def test_the_others_items_are_referred_to_like_items_that_never_were(world: World) -> None:
    client = world.service.client
    found = []
    for state in ("completed", "completed with tools", "incomplete", "cancelled", "running"):
        shown = (await client.get(f"/v1/responses/{world.made[state]}", headers=world.alice)).json()
        asked = (await client.get(f"/v1/responses/{world.made[state]}/input_items", headers=world.alice)).json()
        found += [item["id"] for item in (*shown["output"], *asked["data"])]
    kinds = {item.partition("_")[0] for item in found}
    for item in found:
        answers = []
        for name in (item, re.sub(r"_[0-9a-f]{32}", "_" + "0" * 32, item)):
            body = {"model": "echo-1", "input": [{"type": "item_reference", "id": name}]}
            answer = await client.post("/v1/responses", json=body, headers=world.bob)
            assert (answer.status_code, error_of(answer)["param"]) == (400, "input[0].id")
            answers.append(told(answer, name))
        assert answers[0] == answers[1], item
    print(f"{len(found)} items of the other, of {len(kinds)} kinds: all alike")
    assert kinds >= {"msg", "mcp"}


@pytest.mark.slow
async def test_a_list_shows_nobody_elses_responses(world: World) -> None:
    async def listed(headers: dict[str, str]) -> list[str]:
        answer = await world.service.client.get("/v1/responses", params={"limit": 100}, headers=headers)
        assert answer.status_code == 200
        return [one["id"] for one in answer.json()["data"]]

    gone = {name for state, name in world.made.items() if state == "deleted" or state.startswith("not stored")}
    assert await listed(world.bob) == []
    assert set(await listed(world.alice)) == set(world.made.values()) - gone


async def test_an_idempotency_key_of_another_owner_means_nothing(world: World) -> None:
    made = []
    for headers in (world.alice, world.bob):
        same = headers | {"idempotency-key": "the-same"}
        answer = await world.service.client.post("/v1/responses", json=ask("echo-2"), headers=same)
        assert answer.status_code == 200
        made.append(answer.json()["id"])

    other_body = await world.service.client.post(
        "/v1/responses", json=ask("echo-3"), headers=world.bob | {"idempotency-key": "alices-own"}
    )

    assert made[0] != made[1]
    assert other_body.status_code == 200
    assert [await status_of(world, made[0], headers) for headers in (world.alice, world.bob)] == [200, 404]


async def status_of(world: World, name: str, headers: dict[str, str]) -> int:
    return (await world.service.client.get(f"/v1/responses/{name}", headers=headers)).status_code


# -- the generator itself


def test_a_route_of_no_known_kind_is_noticed() -> None:
    for rule in ("/v1/things/<thing_id>", "/v1/models/<path:name>/<owner>", "/admin", "/v1"):
        with pytest.raises(AssertionError, match=r"OWNED or SHARED|PUBLIC"):
            visits_of(Map([Rule(rule)]).iter_rules())


def test_a_new_route_with_an_id_is_visited_at_once() -> None:
    rules = Map([Rule("/v1/responses/<response_id>/cancel", methods=["POST"])]).iter_rules()

    (visit,) = visits_of(rules)

    assert (visit.method, visit.is_owned, visit.is_public) == ("POST", True, False)
    assert visit.path(UNKNOWN_ID) == f"/v1/responses/{UNKNOWN_ID}/cancel"


@asynccontextmanager
async def open_leaky_client(service: Service) -> AsyncIterator[tuple[httpx.AsyncClient, list[Visit]]]:
    """A client of the application with a route that tells whose a response is, and what there is to visit of it."""
    async with open_api(service.config, service.pool) as (api, store):
        app = build_application(api, store)

        @app.get("/v1/responses/<response_id>/state")
        async def tell_state(response_id: str) -> tuple[str, int]:
            known = await service.pool.fetchval("select count(*) from requests where 'resp_' || id = $1", response_id)
            return "", 403 if known else 404

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=service.url) as client:
            yield client, visits_of(app.url_map.iter_rules())


async def test_a_new_route_that_tells_of_the_others_responses_is_noticed(world: World) -> None:
    async with open_leaky_client(world.service) as (client, visits):
        owned = [visit for visit in visits if visit.is_owned]
        made = {"completed": world.made["completed"]}
        differences = await find_differences(client, owned, world.bob, made)

    assert len(differences) == 2 * len(QUERIES)
    assert differences[0] == "GET /v1/responses/<response_id>/state completed: 403"


# -- keys


@pytest.mark.slow
async def test_without_a_live_key_every_route_gives_the_same_401(world: World) -> None:
    (revoked,) = await authorize(world.service, "alice")
    key = revoked["authorization"].removeprefix("Bearer ")
    assert await PostgresKeyStore(world.service.pool).revoke_key(key[:15]) == "alice"
    wrong = ("", "Bearer", f"Bearer {key}", f"Basic {key}", f"Token {key}", key, f"bearer  {key}x", "Bearer x")
    before = await read_rows(world.service)
    told_of: dict[str, set[object]] = {}

    for visit in world.visits:
        for name in (UNKNOWN_ID, world.made["completed"]):
            for headers in ({}, *({"authorization": value} for value in wrong), {"x-api-key": key}, {"api-key": key}):
                answer = await visit.make(world.service.client, name, headers, f"?api_key={key}")
                if visit.is_public:
                    assert answer.status_code == 200, visit
                    continue
                assert answer.status_code == 401, (visit, headers)
                seen = told(answer)
                told_of.setdefault(visit.method, set()).add((seen.body, tuple(sorted(seen.headers.items()))))

    assert {method: len(answers) for method, answers in told_of.items()} == dict.fromkeys(told_of, 1)
    assert set(told_of) >= {"GET", "HEAD", "POST", "DELETE"}
    assert await read_rows(world.service) == before


@pytest.mark.slow
async def test_a_401_says_how_to_get_in_and_nothing_of_the_key_that_was_sent(world: World) -> None:
    secret = "sk-dwctl-" + "canary" * 7

    answer = await world.service.client.get("/v1/models", headers={"authorization": f"Bearer {secret}"})

    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (401, "invalid_request_error", None)
    assert error["code"] == "invalid_api_key"
    assert "Authorization: Bearer" in error["message"]
    assert "canary" not in answer.text + str(answer.headers)


@pytest.mark.slow
async def test_the_database_holds_the_digest_of_a_key_and_never_the_key(world: World) -> None:
    key = world.alice["authorization"].removeprefix("Bearer ")

    dump = await dump_database(world.service)

    assert hashlib.sha256(key.encode()).hexdigest() in dump
    assert key[:15] in dump, "the prefix that may be shown"
    assert key[15:] not in dump
    assert key[15:25] not in dump
    assert "word0 word1" in dump, "a dump that shows what was answered"


async def test_a_revoked_key_is_refused_within_five_seconds_however_often_it_is_used(
    autojump_clock: trio.testing.MockClock,
) -> None:
    keys = MemoryKeyStore(MemoryDatabase())
    authenticator = Authenticator(keys, DEFAULT_LIMITS)
    key = await keys.create_key("alice")
    assert (await authenticator.find_caller(f"Bearer {key}")).owner == "alice"

    await trio.sleep(1.0)
    await authenticator.find_caller(f"Bearer {key}")
    await keys.revoke_key(key[:15])
    revoked_at = trio.current_time()
    with pytest.raises(AuthenticationFailed):
        while trio.current_time() < revoked_at + 60.0:
            await authenticator.find_caller(f"Bearer {key}")
            await trio.sleep(0.1)

    assert trio.current_time() - revoked_at <= 5.0
