"""What the tests of tenants share: every route of the application, one tenant's responses in every state, and answers
without what may differ between two of them.

Rule: the routes are the application's own, so that a new one is visited as soon as it is there. One that takes an
argument of a new kind, or that lies outside of ``/v1``, must be classified here first.
"""

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import httpx
from tests.http.conftest import DELTA, RawClient, as_request, ask, error_of, open_raw, wait_terminal
from tests.http.server_tools import server_tools
from werkzeug.routing import Rule

from dwctl_trio.domain import ids
from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import Service

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Everything else needs a key."""
OWNED = frozenset({"response_id"})
"""Arguments that name what belongs to one owner."""
SHARED = frozenset({("/v1/models/<path:name>", "name")})
"""Arguments that name what belongs to nobody."""
BODIES: Mapping[str, object] = {}
"""The body that a route with an owned argument needs to get as far as looking; ``{}`` where nothing stands here."""

UNKNOWN_ID = "resp_00000000-0000-4000-8000-000000000000"
MALFORMED_IDS = (
    *("resp_", "resp_1", "x", "null", "undefined", "*", "...", "%20", "%00", "%0d%0a", "%25", "%27%20or%201=1--"),
    *(UNKNOWN_ID.upper(), UNKNOWN_ID[5:], UNKNOWN_ID.replace("-", ""), UNKNOWN_ID + "x", UNKNOWN_ID + "%00"),
    *(UNKNOWN_ID + "%20", "%20" + UNKNOWN_ID, UNKNOWN_ID.replace("resp", "msg"), "resp_" + "0" * 5000, "%f0%9f%99%82"),
)
"""As they stand in a URL."""

_VARYING = frozenset({"x-request-id", "date", "connection"})
"""``connection`` is on every thousandth answer of one, whatever was asked."""
_ID_IN_STREAM = re.compile(rb'"id":"(resp_[0-9a-f-]{36})"')


@attrs.frozen(kw_only=True)
class Visit:
    """One method of one route."""

    method: str
    rule: str
    arguments: frozenset[str]

    @property
    def is_public(self) -> bool:
        """Whether it needs no key."""
        return self.rule in PUBLIC

    @property
    def is_owned(self) -> bool:
        """Whether its URL names what belongs to one owner."""
        return bool(self.arguments & OWNED)

    def path(self, name: str) -> str:
        """The URL's path with *name* for all arguments."""
        return re.sub(r"<[^>]+>", name, self.rule)

    async def make(
        self, client: httpx.AsyncClient, name: str, headers: Mapping[str, str], query: str = ""
    ) -> httpx.Response:
        """The answer with *name* for all arguments."""
        body = None if self.method in {"GET", "HEAD", "DELETE"} else BODIES.get(self.rule, {})
        return await client.request(self.method, self.path(name) + query, headers=headers, json=body)


def visits_of(rules: Iterable[Rule]) -> list[Visit]:
    """Every method of every route.

    Raises:
        AssertionError: A route is of no known kind; it says what to do.
    """
    visits = []
    for rule in rules:
        for argument in rule.arguments:
            assert argument in OWNED or (rule.rule, argument) in SHARED, (
                f"{rule.rule}: is '{argument}' one owner's or everybody's? Name it in OWNED or SHARED."
            )
        assert rule.rule in PUBLIC or rule.rule.startswith("/v1/"), f"{rule.rule}: what needs no key stands in PUBLIC."
        methods = sorted(rule.methods or {"GET"})
        visits += [Visit(method=name, rule=rule.rule, arguments=frozenset(rule.arguments)) for name in methods]
    return visits


@attrs.frozen(kw_only=True)
class Answer:
    """What a client can tell two answers apart by."""

    status: int
    headers: Mapping[str, str]
    body: str

    def without_length(self) -> "Answer":
        """The same for names of different lengths."""
        headers = {name: value for name, value in self.headers.items() if name != "content-length"}
        return attrs.evolve(self, headers=headers)


def told(answer: httpx.Response, *names: str) -> Answer:
    """*answer* without the *names* that were sent, its own id, its date, and the numbers of a rate limit."""
    body = answer.text
    for name in names:
        body = body.replace(name, "<id>")
    headers = {
        name: "*" if name.startswith("x-ratelimit-") else value
        for name, value in answer.headers.items()
        if name not in _VARYING
    }
    return Answer(status=answer.status_code, headers=headers, body=body)


def assert_not_found(answer: httpx.Response) -> None:
    """The answer is our 404, of which HEAD has no body."""
    assert answer.status_code == 404, (answer.status_code, answer.text)
    if answer.request.method != "HEAD":
        error = error_of(answer)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "not_found")


async def authorize(service: Service, *owners: str) -> list[dict[str, str]]:
    """Headers with a new key for each owner."""
    keys = PostgresKeyStore(service.pool)
    return [{"authorization": f"Bearer {await keys.create_key(owner)}"} for owner in owners]


@asynccontextmanager
async def open_responses(service: Service, headers: Mapping[str, str]) -> AsyncIterator[dict[str, str]]:
    """One owner's responses in every state, by the state's name; those that run do so for the time of the block."""
    client = service.client

    async def create(model: str, **fields: object) -> httpx.Response:
        return await client.post("/v1/responses", json=ask(model, **fields), headers=headers)

    made = {
        "completed": (await create("echo-2")).json()["id"],
        "completed with tools": (await create("tools-1", tools=[server_tools("researcher")])).json()["id"],
        "incomplete": (await create("echo-2-length")).json()["id"],
        "failed with output": (await create("echo-2-cut-each")).json()["id"],
        "failed at once": (await create("error-500")).headers["x-response-id"],
        "deleted": (await create("echo-2")).json()["id"],
        "not stored": (await create("echo-2", store=False)).json()["id"],
        "not stored and failed": (await create("error-500", store=False)).headers["x-response-id"],
    }
    deleted = await client.delete(f"/v1/responses/{made['deleted']}", headers=headers)
    assert deleted.status_code == 200
    queued = {"background": True}
    flex = {"service_tier": "flex", "store": False}
    made["not stored, of the queue"] = (await create("echo-2", **flex)).json()["id"]
    made["completed, of the queue"] = await _read_to_end(client, headers, ask("echo-2", stream=True, **queued))
    running: dict[str, dict[str, object]] = {
        "running": {},
        "not stored and running": {"store": False},
        "running, of the queue": queued,
        "not stored and running, of the queue": flex,
        "cancelled": {},
    }
    async with AsyncExitStack() as stack:
        for state, fields in running.items():
            stream = await stack.enter_async_context(open_raw(service))
            made[state] = await _begin(stream, headers, ask("echo-4-pause-2", key=state[-9:], stream=True, **fields))
            if state == "cancelled":
                await stream.hang_up()
                row = await wait_terminal(service, state)
                assert (row["state"], row["id"]) == ("canceled", ids.parse_response_id(made[state]))
        yield made
        service.simulator.resume_all()


async def _begin(client: RawClient, headers: Mapping[str, str], body: Mapping[str, object]) -> str:
    """Start a stream and read its first delta; the response's id."""
    await client.send(as_request(body, f"Authorization: {headers['authorization']}"))
    found = _ID_IN_STREAM.search(await client.read_until(DELTA))
    assert found is not None
    return found[1].decode()


async def _read_to_end(client: httpx.AsyncClient, headers: Mapping[str, str], body: Mapping[str, object]) -> str:
    """Stream a response to its end; its id."""
    answer = await client.post("/v1/responses", json=body, headers=headers)
    assert answer.content.endswith(b"data: [DONE]\n\n"), answer.text
    return str(answer.headers["x-response-id"])


async def read_rows(service: Service) -> list[str]:
    """All rows that are somebody's, as text, without the leases, which are renewed."""
    rows = await service.pool.fetch("select (to_jsonb(r) - 'lease_expires_at')::text from requests r order by id")
    steps = await service.pool.fetch("select s::text from response_steps s order by id")
    events = await service.pool.fetch("select e::text from response_events e order by response_id, first_sequence")
    return [row[0] for row in (*rows, *steps, *events)]


async def _text_columns(service: Service) -> Iterator[tuple[str, str]]:
    """Each table with an expression that gives its row as text; bytes that are ASCII are readable in it."""
    columns = await service.pool.fetch(
        "select table_name, column_name, data_type from information_schema.columns"
        " where table_schema = 'public' order by 1, ordinal_position"
    )
    tables: dict[str, list[str]] = {}
    for table, column, kind in columns:
        shown = f"encode({column}, 'escape'), encode({column}, 'hex')" if kind == "bytea" else f"{column}::text"
        tables.setdefault(table, []).append(shown)
    return iter([(table, f"concat_ws(' ', {', '.join(shown)})") for table, shown in tables.items()])


async def dump_database(service: Service) -> str:
    """All that the database holds, as text, with bytes in clear and in hexadecimal."""
    lines = []
    for table, expression in await _text_columns(service):
        lines += [f"{table}: {row[0]}" for row in await service.pool.fetch(f"select {expression} from {table}")]
    return "\n".join(lines)
