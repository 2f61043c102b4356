"""One response after the other through the real loop, in as many processes as it takes.

    process 1 ── enqueues the row, claims it, works, dies at a store call ─┐
    process 2 ── rescues and claims it once its lease is out ──────────────┴─ … ── the last one lives

The upstream and the tools are real servers; what is watched of the loop are its own ports.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import attrs
import trio
from tests.conformance.conftest import Lab, MemoryLab, PostgresLab
from tests.conformance.responses import make_finished, make_new, make_request

from dwctl_trio.domain.claiming import ClaimDemand
from dwctl_trio.domain.errors import StoreError
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.steps import Chain, StepState
from dwctl_trio.domain.tools import AgentTool, HttpTool, OfferedTool, ToolCatalog, offer
from dwctl_trio.engine.enqueue import enqueue
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.engine.queued import run_claimed
from dwctl_trio.engine.state import Services
from dwctl_trio.ports import (
    Claimed,
    ClaimedResponse,
    NewResponse,
    StoredResponse,
    ToolInvocation,
    TurnStream,
    UpstreamCall,
)
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.trace_context import TraceContext
from dwctl_trio.testing.faulty_store import Fault, FaultyStore, Store, StoreCall
from dwctl_trio.testing.memory_rows import EventLog, MemoryRow, MemoryStep
from dwctl_trio.testing.service import make_config
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.testing.tool_server import ToolReply, ToolServer, open_tool_server
from dwctl_trio.tools.http_tools import HttpToolRunner
from dwctl_trio.upstream.client import Upstreams, open_upstreams

OWNER = "somebody"
LIMITS = Limits(
    lease_s=60.0,
    lease_give_up_s=40.0,
    terminal_write_s=5.0,
    terminal_retry_s=0.01,
    tool_output_bytes=4096,
    segment_interval_s=0.01,
    queue_attempts=1000,
    queue_reclaims=1000,
)
SLOW_TOOL_S = 0.05
"""The time that the tool ``slow`` has; the others have more than any test takes."""
CLIENT_TOOL = "mine"
MISSING_TOOL = "gone"
"""Offered when the response was opened, and no longer there."""
HTTP_TOOLS = {"read": True, "write": False, "slow": False, "slow_read": True}
"""Whether each is idempotent."""
REPLIES = {
    "echo": ToolReply(),
    "text": ToolReply(body="21 °C €".encode(), content_type="text/plain; charset=utf-8"),
    "nothing": ToolReply(body=b""),
    "not found": ToolReply(status=404, body=b'{"error": "no such thing"}'),
    "unavailable": ToolReply(status=503),
    "cut in the head": ToolReply(cuts_at="head"),
    "cut in the body": ToolReply(cuts_at="body", is_chunked=True),
    "reset": ToolReply(cuts_at="body", resets=True),
    "too large": ToolReply(body=b"x" * (LIMITS.tool_output_bytes + 1)),
    "slow head": ToolReply(pauses_at="head"),
    "slow body": ToolReply(pauses_at="body"),
}
"""What tools answer; only ``slow`` ones may answer slowly, or a test would wait for them."""

EARLIER_ID = UUID(int=7)
APPEND = "append_events"
_RUN_S_MAX = 60.0
_LIVES_MAX = 40
_UPSTREAM = "simulator"
_EMPTY = "delete from requests; delete from usage_records; delete from daemons"
_ANY = ClaimDemand(rows=1, models={}, other_models=1, owner_rows=1)
_PARAMETERS = b'{"type":"object"}'


@attrs.frozen(kw_only=True)
class AgentPlan:
    """A sub-agent."""

    model: str
    """Its script."""
    tools: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Plan:
    """One response: what its models, its tools and its stores do."""

    model: str
    """The script of the response's own model."""
    tools: tuple[str, ...] = ()
    """What it is offered, in order."""
    agents: Mapping[str, AgentPlan] = attrs.field(factory=dict)
    agent_s: float = 60.0
    """The time of each agent."""
    replies: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """What each HTTP tool answers, in order, by the names in ``REPLIES``; the last one repeats."""
    body: Mapping[str, Any] = attrs.field(factory=dict)
    """What else the request says."""
    earlier: str | None = None
    """What was asked in the response that it goes on with; None: it begins a conversation."""
    bounds: Mapping[str, float] = attrs.field(factory=dict)
    """The limits that differ from ``LIMITS``."""
    lives: tuple[Mapping[int, Fault], ...] = ()
    """For each process but the last what goes wrong with its store calls, by number; those for events do not count."""
    append_faults: tuple[Fault | None, ...] = ()
    """For each process what goes wrong with its first write of events."""

    @property
    def limits(self) -> Limits:
        """The engine's."""
        return attrs.evolve(LIMITS, **self.bounds)

    def catalog(self, server: ToolServer) -> ToolCatalog:
        """The server's tools."""
        tools: dict[str, HttpTool | AgentTool] = {
            name: HttpTool(
                name=name,
                description=f"The tool {name}.",
                parameters=_PARAMETERS,
                url=server.url(f"/{name}"),
                timeout_s=SLOW_TOOL_S if name.startswith("slow") else _RUN_S_MAX,
                idempotent=is_idempotent,
                allow_private=True,
            )
            for name, is_idempotent in HTTP_TOOLS.items()
        }
        for name, agent in self.agents.items():
            tools[name] = AgentTool(
                name=name,
                description=f"The agent {name}.",
                route=ModelRoute(model=agent.model, upstream=_UPSTREAM, upstream_model=agent.model),
                instructions=f"You are {name}.",
                tools=agent.tools,
                timeout_s=self.agent_s,
            )
        return tools

    def offered(self, server: ToolServer) -> tuple[OfferedTool, ...]:
        """What the response's own model may call."""
        catalog = self.catalog(server)
        others = {CLIENT_TOOL: CallKind.FUNCTION, MISSING_TOOL: CallKind.SERVER}
        return tuple(
            offer(catalog[name])
            if name in catalog
            else OfferedTool(kind=others[name], name=name, parameters=_PARAMETERS)
            for name in self.tools
        )


@attrs.define(eq=False, kw_only=True)
class Life:
    """What one process did."""

    steps_before: dict[UUID, MemoryStep]
    """The rows as it found them."""
    steps_after: dict[UUID, MemoryStep] = attrs.field(factory=dict)
    fired: list[UUID] = attrs.field(factory=list)
    """The steps whose model or HTTP tool was called."""
    log_after: bytes = b""
    """The events that were stored when it ended."""
    calls: list[StoreCall] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)
    """Those that happened."""


@attrs.frozen(kw_only=True)
class Played:
    """A response, from its first process to its last, and what is left of it."""

    plan: Plan
    new: NewResponse
    catalog: ToolCatalog
    lives: tuple[Life, ...]
    row: MemoryRow | None
    steps: tuple[MemoryStep, ...]
    """In order of sequence."""
    chain: Chain
    """The same, as the store gives it."""
    log: bytes
    """All stored events."""
    metered: frozenset[UUID]
    """The steps with a usage record."""
    shown: StoredResponse | None
    """What GET answers from."""
    bodies: Mapping[UUID, list[Any]]
    """What the upstream was sent, by step."""
    tool_calls: Counter[str]
    """What the tools' server was called with, by idempotency key."""

    @property
    def crashes(self) -> int:
        """Processes that ended before the response did."""
        return len(self.lives) - 1


class LoopWorld:
    """An upstream, tools and a database. ``open_world`` makes one."""

    def __init__(
        self, simulator: Simulator, tool_server: ToolServer, upstreams: Upstreams, postgres: PostgresLab | None
    ) -> None:
        self.simulator = simulator
        self.tool_server = tool_server
        self._upstreams = upstreams
        self._postgres = postgres
        self._runner = HttpToolRunner(LIMITS)

    async def play(self, plan: Plan) -> Played:
        """Work on one response until it has ended, or until it is clear that there is none."""
        lab = await self._empty_lab()
        if plan.earlier is not None:
            await _say_earlier(lab.open_process(plan.limits), plan.earlier)
        self.simulator.reset()
        self.tool_server.calls_by_key.clear()
        for name in HTTP_TOOLS:
            self.tool_server.script(f"/{name}", *(REPLIES[reply] for reply in plan.replies.get(name, ())))
        new = self._make_new(plan)
        lives: list[Life] = []
        with trio.fail_after(_RUN_S_MAX):
            while not lives or _goes_on(lives[-1], await lab.snapshot(), new):
                assert len(lives) < _LIVES_MAX, "it is taken over again and again"
                lives.append(await self._live(plan, lab, new, len(lives)))
            await self.simulator.wait_idle()
            await self.tool_server.wait_idle()
        return await self._collect(plan, lab, new, lives)

    async def _empty_lab(self) -> Lab:
        if self._postgres is None:
            return MemoryLab()
        await self._postgres.pool.execute(_EMPTY)
        return self._postgres

    def _make_new(self, plan: Plan) -> NewResponse:
        body: dict[str, Any] = {"model": plan.model, "input": "hello", "background": True, **plan.body}
        if plan.earlier is not None:
            body["previous_response_id"] = response_id_text(EARLIER_ID)
        return NewResponse(
            response_id=uuid4(),
            owner=OWNER,
            key_prefix=None,
            request=parse_request(body),
            route=ModelRoute(model=plan.model, upstream=_UPSTREAM, upstream_model=plan.model),
            first_step_id=uuid4(),
            tools=plan.offered(self.tool_server),
        )

    async def _live(self, plan: Plan, lab: Lab, new: NewResponse, number: int) -> Life:
        """What process *number* does with the response."""
        planned = plan.lives[number] if number < len(plan.lives) else {}
        life = Life(steps_before=_steps(await lab.snapshot(), new))
        process = lab.open_process(plan.limits)
        await process.register_process()
        numbers, append_faults = count(), iter(plan.append_faults[number : number + 1])

        def decide(call: StoreCall) -> Fault | None:
            is_timed = call.method == APPEND  # how many of these there are is a matter of time
            fault = next(append_faults, None) if is_timed else planned.get(next(numbers))
            if fault is not None:
                life.faults.append(fault)
            return fault

        store = FaultyStore(process, decide)
        services = Services(
            store=store,
            conversations=store,
            queue=store,
            events=store,
            upstream=_WatchedUpstream(self._upstreams, life),
            chat=self._upstreams,
            tools=_WatchedTools(self._runner, life),
            catalog=plan.catalog(self.tool_server),
            limits=plan.limits,
            live=LiveResponses(),
        )
        if number > 0:
            await lab.advance_clock(plan.limits.lease_s + plan.limits.queue_retry_cap_s)
        claimed: Sequence[Claimed] = ()
        with suppress(StoreError):  # it died, or the call hung until its time was over
            with trio.move_on_after(plan.limits.store_call_s):
                if number == 0:
                    await enqueue(services, new)
                await store.rescue_expired()
                claimed = await store.claim_responses(_ANY)
            for one in claimed:
                assert isinstance(one, ClaimedResponse)
                await run_claimed(services, one)
        life.calls = store.calls
        after = await lab.snapshot()
        life.steps_after, life.log_after = _steps(after, new), _frames(after, new)
        return life

    async def _collect(self, plan: Plan, lab: Lab, new: NewResponse, lives: list[Life]) -> Played:
        snapshot, reader = await lab.snapshot(), lab.open_process(plan.limits)
        bodies: dict[UUID, list[Any]] = {}
        for request in self.simulator.requests:
            step_id = UUID(hex=request.headers["traceparent"].split("-")[1])
            bodies.setdefault(step_id, []).append(request.body)
        return Played(
            plan=plan,
            new=new,
            catalog=plan.catalog(self.tool_server),
            lives=tuple(lives),
            row=snapshot.rows.get(new.response_id),
            steps=tuple(sorted(snapshot.steps_of(new.response_id), key=lambda step: step.sequence)),
            chain=await reader.read_chain(new.response_id, OWNER),
            log=_frames(snapshot, new),
            metered=frozenset(snapshot.usage),
            shown=await reader.read_response(new.response_id, OWNER),
            bodies=bodies,
            tool_calls=Counter(self.tool_server.calls_by_key),
        )


@asynccontextmanager
async def open_world(postgres: PostgresLab | None = None) -> AsyncIterator[LoopWorld]:
    """A world over *postgres*, or with a database in memory for each response, for the time of the block."""
    async with open_simulator() as simulator, open_tool_server() as tool_server:
        config = make_config("postgresql://unused", simulator.base_url)
        async with open_upstreams(config.upstreams, LIMITS) as upstreams:
            yield LoopWorld(simulator, tool_server, upstreams, postgres)


async def _say_earlier(store: Store, text: str) -> None:
    earlier = make_new(make_request(text), owner=OWNER, response_id=EARLIER_ID)
    await store.open_response(earlier)
    await store.finish_response(make_finished(earlier))


def _steps(snapshot: Any, new: NewResponse) -> dict[UUID, MemoryStep]:
    return {step.id: step for step in snapshot.steps_of(new.response_id)}


def _goes_on(life: Life, snapshot: Any, new: NewResponse) -> bool:
    row = snapshot.rows.get(new.response_id)
    return row is not None and row.state not in TERMINAL_STATES


def _frames(snapshot: Any, new: NewResponse) -> bytes:
    log: EventLog | None = snapshot.events.get(new.response_id)
    return b"".join(segment.frames for segment in log.segments) if log is not None else b""


@attrs.frozen
class _WatchedUpstream:
    """The upstreams; each call says in its trace which step it is."""

    _upstreams: Upstreams
    _life: Life

    @asynccontextmanager
    async def open_turn(self, call: UpstreamCall) -> AsyncIterator[TurnStream]:
        self._life.fired.append(call.step_id)
        trace = TraceContext(trace_id=call.step_id.hex, span_id=call.step_id.hex[:16], flags=0)
        async with self._upstreams.open_turn(attrs.evolve(call, trace=trace)) as turn:
            yield turn


@attrs.frozen
class _WatchedTools:
    """The tools."""

    _runner: HttpToolRunner
    _life: Life

    async def run_tool(self, invocation: ToolInvocation) -> str:
        self._life.fired.append(invocation.step_id)
        return await self._runner.run_tool(invocation)


def is_open(step: MemoryStep) -> bool:
    """Whether its row says that it has not ended."""
    return step.state in {StepState.PENDING, StepState.PROCESSING}
