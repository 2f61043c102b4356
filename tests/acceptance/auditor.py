"""What must hold of all responses once it is quiet, however many processes died over them: read from the rows, what
the upstream and the tools were asked, what the followers were told, and what GET says.
"""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs
import httpx
from tests.acceptance.fleet import Follower, replay

from dwctl_trio.domain.assembly import fold
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.simulator import ReceivedRequest, Simulator
from dwctl_trio.testing.simulator_chat import parse_chat_request, turn_number
from dwctl_trio.testing.tool_server import ReceivedCall, ToolServer
from dwctl_trio.testing.wire import parse_response, read_stream

KEY = re.compile(r"key:([\w.-]+)")
TERMINAL_STATES = {"completed", "failed", "canceled"}
TERMINAL_EVENT = re.compile(rb"^event: response\.(?:completed|incomplete|failed)$", re.MULTILINE)
_ROWS = """
    select id, deadline is not null as is_queued, state, epoch, reclaims, last_sequence,
        response::text as response, error::text as error
    from requests order by created_at
"""
_STEPS = """
    select id, response_id, parent_step_id, sequence, kind, name, call_id, state, error ->> 'type' as error,
        extract(epoch from finished_at)::float8 as finished_at
    from response_steps order by response_id, sequence
"""
_EVENTS = "select response_id, first_sequence, last_sequence, frames from response_events order by 1, 2"
_METERED = "select step_id from usage_records"
_TRIGGERS = "select count(*) from pg_trigger where tgname like '%_terminal_is_for_ever' and tgenabled = 'O'"


@attrs.define(eq=False)
class Calls:
    """What the upstream and the tools were asked, and when, in Unix seconds."""

    turns: defaultdict[tuple[str, int], list[float]] = attrs.Factory(lambda: defaultdict(list))
    """By the key in the request, and how many turns came before."""
    tools: defaultdict[str, list[float]] = attrs.Factory(lambda: defaultdict(list))
    """By idempotency key."""

    def watch(self, simulator: Simulator, tools: ToolServer | None = None) -> None:
        """Write down what is asked from now on."""
        simulator.observers.append(self._note_turn)
        if tools is not None:
            tools.observers.append(self._note_call)

    def _note_turn(self, received: ReceivedRequest) -> None:
        self.turns[received.key or "", turn_number(parse_chat_request(received.raw_body))].append(time.time())

    def _note_call(self, call: ReceivedCall) -> None:
        self.tools[call.idempotency_key or ""].append(time.time())


@attrs.frozen(kw_only=True)
class Asked:
    """One response that a client was given the id of."""

    key: str
    """It stands in its input."""
    body: Mapping[str, Any]
    """As it was posted."""
    follower: Follower
    answer: Mapping[str, Any] | None = None
    """What a blocking request was answered."""


@attrs.frozen(kw_only=True)
class Evidence:
    """What is known outside of the database, and whom to ask."""

    asked: Sequence[Asked]
    """What clients were given an id of."""
    calls: Calls
    once: frozenset[str]
    """Names of the tools that are not idempotent."""
    agents: frozenset[str] = frozenset()
    """Names of the tools that are agents, whose turns are in the steps below theirs."""
    http: httpx.AsyncClient
    urls: Sequence[str]
    """The API processes, each of which is asked for some."""


@attrs.define(eq=False)
class Audit:
    """What was found."""

    violations: list[str] = attrs.Factory(list)
    counts: Counter[str] = attrs.Factory(Counter)

    def check(self, holds: object, violation: str) -> None:
        """Note *violation* unless it *holds*."""
        if not holds:
            self.violations.append(violation)


@attrs.frozen(kw_only=True)
class Stored:
    """All that the database has of one response."""

    row: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    segments: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Its id."""
        return f"resp_{self.row['id']}"

    @property
    def frames(self) -> bytes:
        """Its events, in one piece."""
        return b"".join(segment["frames"] for segment in self.segments)


async def read_stored(pool: Pool) -> list[Stored]:
    """Everything."""
    steps: defaultdict[UUID, list[Any]] = defaultdict(list)
    segments: defaultdict[UUID, list[Any]] = defaultdict(list)
    for step in await pool.fetch(_STEPS):
        steps[step["response_id"]].append(step)
    for segment in await pool.fetch(_EVENTS):
        segments[segment["response_id"]].append(segment)
    return [Stored(row=row, steps=steps[row["id"]], segments=segments[row["id"]]) for row in await pool.fetch(_ROWS)]


async def audit(pool: Pool, evidence: Evidence) -> Audit:
    """Look at everything that is in the database and in *evidence*."""
    found = Audit()
    stored = {one.name: one for one in await read_stored(pool)}
    by_id = {one.follower.response_id: one for one in evidence.asked}
    metered = {row["step_id"] for row in await pool.fetch(_METERED)}
    found.check(await pool.fetchval(_TRIGGERS) == 2, "a trigger that keeps terminal rows is missing")
    found.check(len(by_id) == len(evidence.asked), "two clients were given the same id")
    for one in stored.values():
        _audit_row(found, one)
        _audit_steps(found, one, evidence, metered)
    for index, (response_id, one) in enumerate(by_id.items()):
        if response_id not in stored:
            found.check(holds=False, violation=f"{response_id}: a client has the id, but there is no row")
            continue
        _audit_events(found, stored[response_id], one)
        _audit_turns(found, stored[response_id], one, evidence.calls)
        await _audit_told(found, stored[response_id], one, evidence, index)
    found.counts["responses"] = len(stored)
    found.counts["responses whose client never had the id"] = len(stored.keys() - by_id.keys())
    return found


def _audit_row(found: Audit, one: Stored) -> None:
    row = one.row
    found.counts[f"state {row['state']}"] += 1
    found.counts["reclaims"] += row["reclaims"]
    found.check(row["state"] in TERMINAL_STATES, f"{one.name}: stuck in {row['state']}")
    if not row["is_queued"] and row["state"] != "completed":
        return  # its client was told that it failed, or nothing
    found.check(row["state"] == "completed", f"{one.name}: {row['state']}, {row['error']}")
    expected = 0
    for segment in one.segments:
        found.check(segment["first_sequence"] == expected, f"{one.name}: a gap before event {expected}")
        expected = segment["last_sequence"] + 1
    found.check(row["last_sequence"] == expected - 1, f"{one.name}: last_sequence {row['last_sequence']} of {expected}")
    endings = TERMINAL_EVENT.findall(one.frames)
    found.check(len(endings) == 1, f"{one.name}: {len(endings)} terminal events")


def _audit_steps(found: Audit, one: Stored, evidence: Evidence, metered: set[UUID]) -> None:
    """No tool call that had ended was made again, and none that must not be made twice was."""
    seen: set[str] = set()
    for step in one.steps:
        found.counts[f"{step['kind']} {step['state']}{' ' + step['error'] if step['error'] else ''}"] += 1
        found.check(step["state"] in TERMINAL_STATES, f"{one.name}: step {step['sequence']} is {step['state']}")
        if step["kind"] == "model_call":
            found.check(step["id"] in metered, f"{one.name}: step {step['sequence']} is not metered")
            continue
        found.check(step["call_id"] not in seen, f"{one.name}: two steps for the call {step['call_id']}")
        seen.add(step["call_id"])
        if step["name"] in evidence.agents:
            continue
        made = evidence.calls.tools.get(f"{one.name}-{step['id']}", [])
        found.counts["tool calls made again"] += max(0, len(made) - 1)
        what = f"{one.name}: the tool call {step['sequence']} ({step['name']})"
        if step["name"] in evidence.once:
            found.check(len(made) <= 1, f"{what} was made {len(made)} times")
        found.check(len(made) <= one.row["epoch"], f"{what} was made {len(made)} times in {one.row['epoch']} claims")
        found.check(made or step["state"] != "completed", f"{what} is completed, but was never made")
        late = [at for at in made if step["finished_at"] is not None and at > step["finished_at"]]
        found.check(not late, f"{what} was made again after it had ended")


def _audit_turns(found: Audit, one: Stored, asked: Asked, calls: Calls) -> None:
    """No model call that had completed was made again: each request that the upstream got has a step of its own."""
    rows: Counter[int] = Counter()
    turn = 0
    for step in one.steps:
        if step["kind"] != "model_call" or step["parent_step_id"] is not None:
            continue
        rows[turn] += 1
        if step["state"] == "completed":
            late = [at for at in calls.turns[asked.key, turn] if at > step["finished_at"]]
            found.check(not late, f"{one.name}: turn {turn} was asked for again after it had completed")
            turn += 1
    for (key, number), made in calls.turns.items():
        if key == asked.key:
            found.counts["model calls made again"] += len(made) - 1
            what = f"{one.name}: turn {number} was asked for {len(made)} times, in {rows[number]} steps"
            found.check(len(made) <= rows[number], what)


def _audit_events(found: Audit, one: Stored, asked: Asked) -> None:
    """The events are a right stream that folds to the response."""
    request = parse_request(dict(asked.body), server_tools=())
    try:
        events = read_stream(one.frames, request).events
        found.counts["events"] += len(events)
        violation = check_stream(events)
        found.check(violation is None, f"{one.name}: {violation}")
        body = parse_response(json.loads(one.row["response"] or "null"), request)
        found.check(fold([event.event for event in events]) == body, f"{one.name}: the events do not fold to the row")
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        found.check(holds=False, violation=f"{one.name}: cannot be read: {error!r}")


async def _audit_told(found: Audit, one: Stored, asked: Asked, evidence: Evidence, index: int) -> None:
    """Whoever followed was told what is stored, and so is whoever asks now."""
    follower, http, url = asked.follower, evidence.http, evidence.urls[index % len(evidence.urls)]
    found.counts["connections of followers"] += follower.connections
    found.counts["followers that came back"] += follower.connections > 1
    found.check(follower.is_ended, f"{one.name}: its follower was not told the end")
    found.check(follower.told == one.frames, f"{one.name}: its follower was told something else than what is stored")
    again = await replay(http, url, follower.response_id)
    found.check(again.told == one.frames, f"{one.name}: a replay differs from what is stored")
    shown = (await http.get(f"{url}/v1/responses/{follower.response_id}")).json()
    found.check(shown == json.loads(one.row["response"] or "null"), f"{one.name}: GET differs from the row")
    if follower.frames:
        told = follower.frames[-1].data.get("response")
        found.check(told == shown, f"{one.name}: the last event differs from GET")
    found.check(asked.answer in (None, shown), f"{one.name}: the blocking answer differs from GET")
