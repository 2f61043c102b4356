"""W3C Trace Context: what is understood comes back, what is malformed is ignored, and nothing ever raises."""

import re
import string

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.protocol.trace_context import (
    TRACESTATE_CHARACTERS_MAX,
    TraceContext,
    parse_trace_context,
    render_trace_context,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"
SENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]")
STATE = re.compile(r"[\x20-\x7e]{3,512}")

MALFORMED = (
    "", "00", VALID[:-1], VALID + "0", VALID.upper(), VALID.replace("-", "_"), VALID + "-more", VALID + "-",
    "ff" + VALID[2:], "0" + VALID, f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}-01",
    f"00-{TRACE}-{SPAN[1:]}-01", f"00-{TRACE}-{SPAN}-0x", VALID + "\n", " " + VALID, VALID + "," + VALID,
    "01" + VALID[2:] + "more", VALID.replace("4", "٤"), "01" + VALID[2:] + "-" + "x" * 456, "01" + VALID[2:] + "-\x00",
)  # fmt: skip

hexadecimal = st.text("0123456789abcdef", min_size=1)
ids = st.tuples(
    st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}"),
    st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}"),
)
keys = st.from_regex(r"[a-z0-9][a-z0-9_*/@-]{0,20}", fullmatch=True)
values = st.from_regex(r"[!-+\--<>-~]{1,20}", fullmatch=True)
contexts = st.builds(
    lambda found, flags, members: TraceContext(
        trace_id=found[0],
        span_id=found[1],
        flags=flags,
        tracestate=",".join(f"{key}={value}" for key, value in members.items()) or None,
        is_remote=True,
    ),
    ids,
    st.integers(0, 3),
    st.dictionaries(keys, values, max_size=10),
)


def parse(traceparent: str, *tracestates: str) -> TraceContext | None:
    return parse_trace_context([traceparent], tracestates)


def state_of(*tracestates: str) -> str | None:
    context = parse(VALID, *tracestates)
    assert context is not None, "a bad tracestate leaves traceparent alone"
    return context.tracestate


@given(context=contexts)
def test_what_is_sent_on_is_what_came(context: TraceContext) -> None:
    headers = render_trace_context(context)
    received = [value for name, value in headers if name == "tracestate"]

    assert parse_trace_context([headers[0][1]], received) == context


@given(
    traceparents=st.lists(st.text() | hexadecimal | st.sampled_from(MALFORMED), max_size=3), states=st.lists(st.text())
)
@example(traceparents=[], states=["a=b"])
@example(traceparents=[VALID, VALID], states=[])
def test_nothing_that_a_client_sends_raises(traceparents: list[str], states: list[str]) -> None:
    parse_trace_context(traceparents, states)


@given(
    traceparent=st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,20})?", fullmatch=True),
    states=st.lists(st.text(string.printable) | st.builds("{}={}".format, keys, values), max_size=4),
)
def test_whatever_comes_only_what_is_well_formed_goes_on(traceparent: str, states: list[str]) -> None:
    context = parse(traceparent, *states)

    if context is not None:
        sent = dict(render_trace_context(context))
        assert SENT.fullmatch(sent["traceparent"])
        assert sent["traceparent"][3:52] == traceparent[3:52]
        assert "tracestate" not in sent or STATE.fullmatch(sent["tracestate"])


@pytest.mark.parametrize("traceparent", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_traceparent_is_none(traceparent: str) -> None:
    assert parse(traceparent, "a=b") is None


def test_two_traceparents_or_none_are_none() -> None:
    assert parse_trace_context([], ["a=b"]) is None
    assert parse_trace_context([VALID, VALID], []) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    for later in ("01" + VALID[2:], "cc" + VALID[2:] + "-what-the-future-holds", "fe" + VALID[2:] + "-"):
        assert parse(later) == parse(VALID)


def test_only_flags_that_are_known_go_on() -> None:
    for sent, known in (("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0)):
        context = parse(f"00-{TRACE}-{SPAN}-{sent}")
        assert context is not None
        assert context.flags == known


def test_states_in_several_headers_are_one_and_empty_members_go() -> None:
    assert state_of("a=1, b=2 ,,\tc=3", "", "t@v=x/y") == "a=1,b=2,c=3,t@v=x/y"


@pytest.mark.parametrize(
    "state",
    ["", ",", "a", "a=", "=a", "A=b", "a=b=c", "a=é", "a=b,a=c", "a b=c", "a=b\x7f", "a=b\r\nx-evil: 1", "-a=b"],
)
def test_a_malformed_state_is_dropped(state: str) -> None:
    assert state_of(state) is None


def test_a_state_of_512_characters_goes_on_and_a_longer_one_does_not() -> None:
    longest = "a=" + "x" * 253 + ",b=" + "y" * 254
    assert len(longest) == TRACESTATE_CHARACTERS_MAX

    assert state_of(longest) == longest
    assert state_of(longest + ",") is None
    assert state_of(longest, "") is None
    assert state_of(",".join(f"a{number}=b" for number in range(32))) is not None
    assert state_of(",".join(f"a{number}=b" for number in range(33))) is None


def test_a_context_without_a_state_is_one_header() -> None:
    context = parse(VALID)
    assert context is not None

    assert render_trace_context(context) == [("traceparent", VALID)]
    assert render_trace_context(attrs.evolve(context, flags=0, tracestate="a=b")) == [
        ("traceparent", VALID[:-1] + "0"),
        ("tracestate", "a=b"),
    ]
