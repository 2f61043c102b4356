"""Random responses: what the models, the tools and the stores do, in every mixture."""

from typing import Any

from hypothesis import strategies as st
from tests.machines.world import CLIENT_TOOL, HTTP_TOOLS, MISSING_TOOL, REPLIES, AgentPlan, Plan

from dwctl_trio.testing.faulty_store import Fault

AGENTS = ("boss", "aide")
LIVES_MAX = 3
_NUMBERS = st.sampled_from([3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 9, 10, 12, 14, 4, 5, 2, 1, 0])
"""Of the store's calls; seldom the first ones, for without a row there is little to see."""
_SHORT_WAITS = {"terminal_write_s": 0.2, "store_wait_s": 0.05, "store_call_s": 0.05}
"""Where the store hangs."""
_SHORT_AGENT_S = 0.15

_DEATHS = st.sampled_from([Fault.DIE_BEFORE, Fault.DIE_AFTER])
_FAILURES = st.sampled_from([Fault.FAIL_BEFORE, Fault.FAIL_AFTER])
_HANGS = st.sampled_from([Fault.HANG_BEFORE, Fault.HANG_AFTER])

_QUICK_REPLIES = st.sampled_from([name for name in REPLIES if not name.startswith("slow")])
_SLOW_REPLIES = st.sampled_from(["slow head", "slow body", "echo"])

_ASKING = st.builds(
    "{}-{}".format,
    st.sampled_from(["tools", "tools", "tools", "toolslate", "toolsnoid", "toolsbad"]),
    st.integers(1, 4),
)
_ANSWERS = ["echo-2", "echo-2", "echo-2", "echo-3", "reasoning-2-2", "refusal-2"]
_CUT_SHORT = ["echo-0", "tools-2-length", "echo-3-filter", "echo-3-length"]
_FAILURES_OF_MODELS = ["error-500", "error-429-1", "empty-200", "echo-2-cut", "tools-2-cut", "echo-2-garbage"]
_ENDS = st.sampled_from(_ANSWERS * 3 + _CUT_SHORT + _FAILURES_OF_MODELS)


def _scripts(rounds: int) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(_ASKING, min_size=1, max_size=rounds), _ENDS).map(
        lambda parts: "-then-".join([*parts[0], parts[1]])
    )


def _names(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=4).map(tuple)


@st.composite
def plans(draw: st.DrawFn, *, is_wild: bool = True) -> Plan:
    """Any response in any number of processes."""
    hangs = is_wild and draw(st.integers(0, 7)) == 0
    agents = {
        "boss": AgentPlan(model=draw(_scripts(2)), tools=draw(_names(*HTTP_TOOLS, *AGENTS))),
        "aide": AgentPlan(model=draw(_scripts(2)), tools=draw(_names(*HTTP_TOOLS, "aide"))),
    }
    tools = draw(_names(*HTTP_TOOLS, *AGENTS, *HTTP_TOOLS, *AGENTS, CLIENT_TOOL, MISSING_TOOL))
    replies = {
        name: tuple(draw(st.lists(_SLOW_REPLIES if name.startswith("slow") else _QUICK_REPLIES, max_size=3)))
        for name in HTTP_TOOLS
        if name in tools or any(name in agent.tools for agent in agents.values())
    }
    return Plan(
        model=draw(_scripts(3)),
        tools=tools,
        agents=agents,
        agent_s=draw(st.sampled_from([60.0, 60.0, _SHORT_AGENT_S])),
        replies=replies,
        body=draw(_bodies()),
        bounds=draw(_bounds(hangs=hangs)),
        lives=tuple(draw(st.lists(_faults(hangs=hangs), min_size=1, max_size=LIVES_MAX))),
        append_faults=tuple(draw(st.lists(st.none() | st.none() | _FAILURES | _DEATHS, max_size=LIVES_MAX))),
    )


@st.composite
def _bodies(draw: st.DrawFn) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": 0.25, "user": "u1"}
    for name, values in {"max_tool_calls": st.integers(1, 5), "max_output_tokens": st.integers(16, 60)}.items():
        if draw(st.integers(0, 3)) == 0:
            body[name] = draw(values)
    if draw(st.booleans()):
        body["include"] = ["dwctl:sub_agents"]
    if draw(st.booleans()):
        body["parallel_tool_calls"] = False
    return body


@st.composite
def _bounds(draw: st.DrawFn, *, hangs: bool) -> dict[str, float]:
    choices = {
        "turns": [None, None, 3, 1],
        "steps": [30, 30, 12, 5],
        "tool_calls": [None, None, 6, 0],
        "depth": [None, 2, 1, 0],
        "background_deadline_s": [None, None, None, None, None, 100.0],
        "queue_attempts": [6, 6, 6, 6, 3, 1],
        "queue_reclaims": [None, None, None, None, 1],
        "segment_interval_s": [0.01, 0.01, 10.0],
        "agent_concurrency": [None, 1],
        "tool_concurrency": [None, 1],
    }
    drawn = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    return {name: value for name, value in drawn.items() if value is not None} | (_SHORT_WAITS if hangs else {})


@st.composite
def _faults(draw: st.DrawFn, *, hangs: bool) -> dict[int, Fault]:
    faults = draw(st.dictionaries(_NUMBERS, _HANGS if hangs else _FAILURES, max_size=1 + hangs))
    return {**faults, draw(_NUMBERS): draw(_DEATHS)}
